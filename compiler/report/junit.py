"""A report as JUnit XML: a suite a bundle, a case a gate. It has no times: equal bundles, equal bytes."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from qcompile.compiler.report.bundles import Entry, Gate
from qcompile.compiler.report.reports import Report


def junit(report: Report) -> str:
    """Return the XML."""
    root = Element("testsuites", {"name": "qcompile", **_counts(report.entries)})
    for entry in report.entries:
        suite = SubElement(root, "testsuite", {"name": entry.label, **_counts((entry,))})
        _properties(suite, entry)
        for gate in entry.gates:
            _case(suite, entry, gate)
    ElementTree.indent(root, " ")
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _counts(entries: tuple[Entry, ...]) -> dict[str, str]:
    gates = [gate for entry in entries for gate in entry.gates]
    failures = sum(not gate.passed for gate in gates)
    counts = {"tests": len(gates), "failures": failures, "errors": 0, "skipped": 0}
    return {name: str(count) for name, count in counts.items()}


def _properties(suite: Element, entry: Entry) -> None:
    model, target, format, precision = entry.identity
    values = {"model": model, "target": target, "format": format, "precision": precision}
    properties = SubElement(suite, "properties")
    for name, value in {**values, "artifact_bytes": str(entry.bytes)}.items():
        SubElement(properties, "property", name=name, value=value)


def _case(suite: Element, entry: Entry, gate: Gate) -> None:
    case = SubElement(suite, "testcase", classname=entry.label, name=gate.name)
    if gate.passed:
        SubElement(case, "system-out").text = gate.message
    else:
        failure = SubElement(case, "failure", message=gate.message, type="gate")
        failure.text = gate.message
