"""A report as SARIF 2.1.0: what failed, got worse or is not as usual.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

import qcompile
from qcompile.compiler.report.findings import RULES, Finding, Rule
from qcompile.compiler.report.reports import Report
from qcompile.runtime.manifest import FILE

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)


def sarif(report: Report) -> str:
    """Return the log of one run."""
    folders = {entry.label: entry.folder.name for entry in report.entries}
    driver = {
        "name": "qcompile",
        "semanticVersion": qcompile.__version__,
        "rules": [_rule(rule) for rule in RULES],
    }
    results = [_result(finding, folders[finding.bundle]) for finding in report.findings]
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=1, sort_keys=True) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.text},
        "defaultConfiguration": {"level": rule.level},
    }


def _result(finding: Finding, folder: str) -> dict[str, Any]:
    above, _, _ = finding.bundle.rpartition("/")
    uri = quote("/".join(filter(None, (above, folder, FILE))))
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    if finding.layer:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.layer, "kind": "member"}]
    return {
        "ruleId": finding.rule.id,
        "ruleIndex": RULES.index(finding.rule),
        "level": finding.rule.level,
        "message": {"text": finding.message},
        "locations": [location],
        "partialFingerprints": {"qcompile/v1": _fingerprint(finding)},
    }


def _fingerprint(finding: Finding) -> str:
    """Return what stays when figures change: the kind, the bundle and the layer."""
    subject = finding.layer or finding.message.partition(":")[0]
    return hashlib.sha256(
        "\0".join((finding.rule.id, finding.bundle, subject)).encode()
    ).hexdigest()
