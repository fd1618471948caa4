"""`glm-infill doctor`: the facts of this machine that matter to the server."""

import importlib.metadata
import json
import os
import platform
from pathlib import Path

from rich.table import Table

from server.commands.options import AsJson
from server.console import output


def doctor(as_json: AsJson = False) -> None:
    """Shows this machine's hardware and libraries, and the kernels in use with the reason."""
    from quant import cpu
    from quant.registry import scheme_class, scheme_names

    facts = {
        "glm-infill": importlib.metadata.version("glm-infill"),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(_memory() / 1e9, 1),
        "cpu_features": [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16") if f in _cpu_flags()],
        "gpus": _gpus(),
        "kernels": {
            **{name: scheme_class(name).kernels() for name in scheme_names()},
            "attention": f"{cpu.variant()} kernels, which read cache blocks in place"
            if cpu.variant()
            else "torch, on copies of the cache blocks",
            "variants": cpu.kernels().supported(),
        },
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for key, item in rows:
            shown = ", ".join(item) if isinstance(item, list) else item
            table.add_row(f"{name} {key}".strip(), str(shown or "none"))
    output.print(table)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[str]:
    """Names of CUDA cards as the driver's /proc files tell them, so that nothing heavy is loaded."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        names += [line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if line.startswith("Model")]
    return names
