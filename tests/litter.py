"""A folder of files that are named as modules are, to stand in: none of them may be imported."""

from pathlib import Path

# Whatever a server imports, by names that a folder may well have.
NAMES = (
    "model", "engine", "quant", "server", "deploy", "training", "numpy", "torch", "tokenizers", "outlines_core", "json",
    "struct", "resource", "array", "encodings", "site", "typing", "random", "peft", "safetensors", "sitecustomize",
    "usercustomize",
)  # fmt: skip


def litter(folder: Path) -> Path:
    """Fills a folder; each of its files that is run writes its name into the file `canary` there."""
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'canary')!r}, 'a').write({name!r} + '\\n')\n")
    return folder
