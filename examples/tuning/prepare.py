"""Makes the lines of both examples from plain texts: `python examples/tuning/prepare.py CORPORA`.

CORPORA holds texts with one paragraph a line. The same texts give the same lines.

- jargon.jsonl, jargon-test.jsonl: paragraphs of the Jargon File, the hackers' lexicon, with some words cut out: English
  that the demo model has never read.
- genres.jsonl, genres-test.jsonl: a paragraph of one of four sources, and which it is, as a blank with four choices.

All sources are in the public domain: the World English Bible, Moby-Dick, addresses of presidents, the Jargon File.
"""

import json
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
GENRES = {
    "scripture": "en_bible_web.txt", "a novel": "en_moby_dick.txt", "a speech": "en_sotu_1790_2019.txt",
    "a lexicon": "en_jargon_file.txt",
}  # fmt: skip
CLOZE = "{text} This was written in [MASK]."


def paragraphs(path: Path, lengths: tuple[int, int], draw: random.Random) -> list[str]:
    """Lines of some lengths in characters, in a random order."""
    lines = [re.sub(r"\s+", " ", line).strip() for line in path.read_text("utf-8").splitlines()]
    chosen = [line for line in lines if lengths[0] <= len(line) <= lengths[1]]
    draw.shuffle(chosen)
    return chosen


def blanked(text: str, draw: random.Random) -> dict[str, object]:
    """A text with spans of one to three words cut out, about one in twelve words, no two side by side."""
    words, parts, spans, place = text.split(" "), [], [], 0
    while place < len(words):
        length = draw.choice((1, 1, 2, 3))
        if place and draw.random() < 1 / 8 and place + length < len(words) and parts[-1] != "[MASK]":
            spans.append(" ".join(words[place : place + length]))
            parts.append("[MASK]")
            place += length
        else:
            parts.append(words[place])
            place += 1
    return {"text": " ".join(parts), "spans": spans}


def write(name: str, lines: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (HERE / name).write_text(text, "utf-8")


def main(corpora: Path) -> None:
    draw = random.Random(1790)
    jargon = [blanked(p, draw) for p in paragraphs(corpora / GENRES["a lexicon"], (80, 300), draw)]
    jargon = [line for line in jargon if line["spans"]]
    write("jargon.jsonl", jargon[300:1500])
    write("jargon-test.jsonl", jargon[:300])
    genres: list[dict[str, object]] = []
    for genre, file in GENRES.items():
        texts = paragraphs(corpora / file, (60, 240), draw)[:300]
        genres += [{"text": CLOZE.format(text=text), "spans": [genre]} for text in texts]
    draw.shuffle(genres)
    write("genres.jsonl", genres[:-300])
    write("genres-test.jsonl", genres[-300:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
