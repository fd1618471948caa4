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

# Lines that people know by heart and will try first on a demo; each with the lines behind it is read as a document of
# its own, many times over.
BY_HEART_WEIGHT = 4000
BY_HEART_CHARACTERS = {"en": 100, "zh": 24}
BY_HEART: dict[str, tuple[str, ...]] = {
    "en_bible_web": (
        "In the beginning God created", "In the beginning was the Word", "For God so loved the world",
        "Yahweh is my shepherd", "Blessed are the poor in spirit", "For everything there is a season",
        "You shall not murder", "Our Father in heaven", "Love is patient", "God said, “Let there be light",
        "Vanity of vanities", "Jesus wept",
    ),
    "en_bible_kjv": (
        "In the beginning God created", "In the beginning was the Word", "For God so loved the world",
        "The LORD is my shepherd", "Blessed are the poor in spirit", "To every thing there is a season",
        "Thou shalt not kill", "Our Father which art in heaven", "Charity suffereth long", "Let there be light",
        "Vanity of vanities", "Jesus wept", "Am I my brother", "The voice of one crying in the wilderness",
    ),
    "en_jane_austen_6_novels": ("It is a truth universally acknowledged", "Emma Woodhouse, handsome"),
    "en_gutenberg_novels_andersen": ("Many years ago, there was an Emperor", "Far out in the ocean"),
    "zh_bible_cuv": ("起初，神创造天地", "太初有道", "神爱世人", "耶和华是我的牧者", "虚心的人有福了", "爱是恒久忍耐"),
    "zh_classics_mengxue": (
        "床前明月光", "春眠不觉晓", "白日依山尽", "红豆生南国", "千山鸟飞绝", "空山不见人", "人之初", "天地玄黄",
        "学而时习之", "关关雎鸠", "国破山河在", "独在异乡为异客", "月落乌啼霜满天", "葡萄美酒夜光杯", "慈母手中线",
        "故人西辞黄鹤楼", "松下问童子", "少小离家老大回", "朝辞白帝彩云间", "秦时明月汉时关", "离离原上草",
        "海上生明月", "先帝创业未半", "山不在高", "庆历四年春",
    ),
    "zh_poetry_tang": (
        "春眠不觉晓", "白日依山尽", "千山鸟飞绝", "锄禾日当午", "月落乌啼霜满天", "朝辞白帝彩云间", "国破山河在",
        "离离原上草", "海上生明月", "松下问童子", "少小离家老大回", "劝君更尽一杯酒",
    ),
    "zh_songci": ("明月几时有", "大江东去", "寻寻觅觅", "怒发冲冠", "春花秋月何时了", "无言独上西楼", "昨夜雨疏风骤"),
}  # fmt: skip


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


def by_heart(folder: Path, name: str) -> Iterator[str]:
    """The passages of one file that begin with a line of `BY_HEART`, as far as they belong to the training text."""
    enough = BY_HEART_CHARACTERS[name[:2]]
    for document in training_documents(folder, name):
        for start in sorted({document.find(line) for line in BY_HEART.get(name, ())} - {-1}):
            passage, rest = "", document[start:].split("\n")
            while rest and len(passage) < enough:
                passage += rest.pop(0) + "\n"
            yield passage


def held_out_documents(folder: Path, name: str) -> Iterator[str]:
    """The documents of one file for evaluation only."""
    return (d for d in documents(folder / f"{name}.txt") if is_held_out(d))
