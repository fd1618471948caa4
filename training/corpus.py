"""The text of the demo model: named files of documents, their shares, and the held-out split.

A file is UTF-8, one paragraph, verse or poem a line, with a blank line between documents. `training.sources`
rebuilds the files from public packages.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

# Times each file is read per pass. English prose and Bible Chinese teach grammar; verse is what the demo's
# Chinese blanks are judged on; scripture and the primers are what people know by heart and will try first.
MIX: dict[str, int] = {
    "en_bible_web": 3,
    "en_bible_kjv": 2,
    "en_gutenberg_novels_andersen": 1,
    "en_jane_austen_6_novels": 1,
    "en_sotu_1790_2019": 1,
    "zh_bible_cuv": 1,
    "zh_poetry_tang": 2,
    "zh_songci": 1,
    "zh_classics_mengxue": 6,
}
HELD_OUT_PERCENT = 2


def documents(path: Path) -> Iterator[str]:
    """The documents of a file, their lines joined by newlines."""
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            line = line.rstrip("\n")
            if line:
                lines.append(line)
            elif lines:
                yield "\n".join(lines)
                lines = []
    if lines:
        yield "\n".join(lines)


def is_held_out(document: str) -> bool:
    """Whether a document is kept from training: by its own hash, so that no order or seed changes it."""
    return hashlib.sha256(document.encode()).digest()[0] * 100 < HELD_OUT_PERCENT * 256


def training_documents(folder: Path, name: str) -> Iterator[str]:
    """The documents of one file that are trained on."""
    return (d for d in documents(folder / f"{name}.txt") if not is_held_out(d))


def held_out_documents(folder: Path, name: str) -> Iterator[str]:
    """The documents of one file that are only evaluated on."""
    return (d for d in documents(folder / f"{name}.txt") if is_held_out(d))
