"""The foreign formats that can be read: every file of this folder with a `FORMAT`."""

import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model.config import CheckpointError
from model.format import Format


def find_formats(paths: Iterable[str]) -> tuple[Format, ...]:
    """`FORMAT` of every module in these package folders, in the order of the modules' names."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(paths))
    return tuple(module.FORMAT for module in modules if hasattr(module, "FORMAT"))


FORMATS = find_formats(__path__)


def format_of(path: Path) -> Format | None:
    """The foreign format of a file or folder; None for a folder of floats or in this project's own form.

    Raises CheckpointError if several formats recognise it.
    """
    quantization = _quantization(path)
    found = [own for own in FORMATS if own.recognises(path, quantization)]
    if len(found) > 1:
        raise CheckpointError(f"{path}: recognised as {' and '.join(own.name for own in found)}")
    return found[0] if found else None


def _quantization(path: Path) -> Mapping[str, Any]:
    """The `quantization_config` of a folder; {} without one, and where `Config` will say what is wrong."""
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
