"""The results of ``int8_vision.py`` as markdown, with what one must know to repeat them."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("qcompile", "onnxruntime", "nncf", "onnx", "onnxscript", "torch", "numpy")
ISA = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
COLUMNS = (
    "",
    "top-1 %",
    "agreement %",
    "SQNR dB",
    "bytes",
    "µs median",
    "µs p90",
    "build s",
    "peak MiB",
)
NOTES = """\
Agreement and SQNR are with the float file's logits, over all test images. Latency: batch 1, one
thread, all files of a model interleaved in one process. A build is one process from start to end,
imports included; peers start from the float ONNX file (its debug metadata stripped), qcompile
from the PyTorch model. `*`: built by an earlier run. The peers' settings that are not defaults
(ort-percentile-asym, nncf-tuned, nncf-tuned-nobc) were chosen among six of onnxruntime's and
eleven of NNCF's by their results on these test images, that is, in the peers' favour.
"""


def environment(command: str, date: str | None) -> dict[str, str]:
    """Return what the numbers depend on."""
    facts = {
        "command": command,
        "cpu": cpu(),
        "threads": "1 (latency, accuracy); builds as each tool chooses",
    }
    return facts | versions() | ({"date": date} if date else {})


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    installed = {
        distribution.name: distribution.version for distribution in metadata.distributions()
    }
    return {"python": platform.python_version()} | {
        name: installed[name] for name in PACKAGES if name in installed
    }


def cpu() -> str:
    """Return the processor's name and its INT8 instruction sets."""
    facts = Path("/proc/cpuinfo")
    if not facts.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in facts.read_text().splitlines())
    fields = {key.strip(): value.strip() for key, _, value in lines}
    flags = fields.get("flags", "").split()
    supported = ", ".join(isa for isa in ISA if isa in flags)
    return f"{fields.get('model name', platform.machine())} ({supported})"


def cells(row: dict[str, Any]) -> list[str]:
    """Return one row as text."""
    build, latency = row["build"], row["latency"]
    closeness = (
        ["", ""] if row["name"] == "float" else [f"{row['agreement']:.2f}", f"{row['sqnr_db']:.2f}"]
    )
    cost = (
        [f"{build['seconds']:.1f}{'*' * row['reused']}", f"{build['peak_mib']:.0f}"]
        if build
        else ["", ""]
    )
    speed = [f"{latency['median']:.0f}", f"{latency['p90']:.0f}"]
    return [row["name"], f"{row['top1']:.2f}", *closeness, f"{row['bytes']:,}", *speed, *cost]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows as the lines of a markdown table."""
    ruler = ["---"] + ["---:"] * (len(COLUMNS) - 1)
    return ["| " + " | ".join(line) + " |" for line in (COLUMNS, ruler, *map(cells, rows))]


def markdown(report: dict[str, Any]) -> str:
    """Return the whole page."""
    lines = ["# INT8 vision models beside the peers", "", NOTES]
    for result in report["results"]:
        lines += [f"## {result['model']}", "", *table(result["rows"]), ""]
        lines += [
            f"Not built: {name}: {' '.join(why.split())}\n"
            for name, why in result["failures"].items()
        ]
    lines += [
        "## Environment",
        "",
        *(f"- {name}: {value}" for name, value in report["environment"].items()),
    ]
    return "\n".join(lines) + "\n"
