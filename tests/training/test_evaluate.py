"""Cloze items are built as promised, and choices are scored as a plain reading of the model says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.attention import DenseAttention, visible
from model.checkpoint import load
from model.families import glm
from model.network import Network
from model.tokenizer import read_tokenizer
from training.evaluate import (
    Item,
    accuracy,
    cloze_items,
    items,
    log_probs,
    pairs,
    passage,
    report,
    sequence,
    tables,
    verse,
    words,
)
from training.pretrain import initialize, save_checkpoint

SHIP = "Yesterday the ship went down the river. Nobody knew where it would come from, or when.\n" * 12
HOME = "A good friend came home late that night; however, people never asked what happened there.\n" * 12
MOON = "泊船瓜洲 王安石\n京口瓜洲一水间，钟山只隔数重山。春风又绿江南岸，明月何时照我还。"
SPRING = "春晓 孟浩然\n春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
NIGHT = "静夜思 李白\n床前看月光，疑是地上霜。举头望山月，低头思故乡。"
TEXTS = {
    "en_ships": [SHIP, HOME],
    "en_alone": ["Only one document means nothing from elsewhere, nothing whatever."],
    "zh_poetry_tang": [MOON, SPRING, NIGHT, NIGHT.replace("月", "明")],
    "zh_bible_cuv": ["起初神创造天地。地是空虚混沌。渊面黑暗。"] * 3,
}


def checkpoint(folder: Path, tokenizer_folder: Path) -> Path:
    size = -(-read_tokenizer(tokenizer_folder).size // 128) * 128
    torch.manual_seed(0)
    model = Network(glm.architecture(2, 64, 1, size, 512))
    initialize(model)
    save_checkpoint(model, tokenizer_folder, folder)
    return folder


def test_words_are_of_four_letters_and_never_first_in_a_sentence() -> None:
    text = "Where did the old captain's ship go, friend? There it went. They don't know over-night why"
    found = [text[c.start : c.end] for c in words([text])]
    assert found == ["ship", "friend", "went", "know"]


def test_pairs_lie_inside_lines_and_not_in_the_title() -> None:
    found = pairs([SPRING])
    assert len(found) == 4 * 4
    assert {c.place for c in found} == {(5, i) for i in range(4)}
    assert all(c.start > SPRING.index("\n") for c in found)
    assert SPRING[found[0].start : found[0].end] == "春眠"


def test_passage_is_sixty_words_with_the_blank_inside() -> None:
    start = SHIP.index("river", 500)
    before, after = passage(SHIP, start, start + 5)
    assert before + "river" + after in SHIP
    assert len(before.split()) == 30
    assert len(after.split()) in (30, 31)  # the full stop that touches the word counts as one
    assert before.endswith("the ")


def test_passage_at_the_borders_of_a_text() -> None:
    assert passage("one word", 4, 8) == ("one ", "")
    assert verse("春眠不觉晓", 1, 3) == ("春", "觉晓")


def test_verse_keeps_forty_characters_each_side() -> None:
    text = "山" * 200
    before, after = verse(text, 100, 102)
    assert (len(before), len(after)) == (40, 40)


def test_english_items() -> None:
    rows = cloze_items(TEXTS, 50)["en"]
    assert len(rows) == 50
    for item in rows:
        document, other = (SHIP, HOME) if item.before + item.choices[0] + item.after in SHIP else (HOME, SHIP)
        assert item.before + item.choices[0] + item.after in document
        assert item.before.endswith(" ")
        assert len({choice.lower() for choice in item.choices}) == 4
        assert all(choice in other and len(choice) >= 4 for choice in item.choices[1:])


def test_chinese_items_take_distractors_from_the_same_place() -> None:
    rows = cloze_items(TEXTS, 100)["zh"]
    assert rows
    poems = TEXTS["zh_poetry_tang"]
    for item in rows:
        assert any(item.before + item.choices[0] + item.after in poem for poem in poems)
        assert len(set(item.choices)) == 4
        assert all(len(choice) == 2 for choice in item.choices)
        assert not set("".join(item.choices)) & set("，。\n ")
        line = max((c.place, c.start) for c in pairs([item.before + item.choices[0] + item.after]))
        assert line[0][0] in (5, 7)


def test_items_are_the_same_every_time() -> None:
    assert cloze_items(TEXTS, 20) == cloze_items(TEXTS, 20)
    assert cloze_items(TEXTS, 20) != cloze_items(TEXTS, 20, seed=1)


def test_file_of_one_document_gives_no_items() -> None:
    alone = {"en_alone": TEXTS["en_alone"]}
    assert items(alone, words, passage, 10, np.random.default_rng(0)) == []


def test_sequence_scores_the_space_that_the_mask_swallows(tokenizer_folder: Path) -> None:
    tokenizer = read_tokenizer(tokenizer_folder)
    sample = sequence(Item("the ", ("ship", "town", "men", "night"), " went"), "ship", tokenizer)
    span = tokenizer.encode(" ship")
    left = [tokenizer.cls, *tokenizer.encode("the"), tokenizer.masks["[MASK]"]]
    part_a = [*left, *tokenizer.encode(" went"), tokenizer.eos]
    assert sample.token_ids.tolist() == [*part_a, tokenizer.sop, *span]
    assert sample.targets.tolist() == [-1] * len(part_a) + [*span, tokenizer.eop]
    assert sample.positions.tolist() == [*range(len(part_a)), *[len(left) - 1] * (len(span) + 1)]
    assert sample.block_positions.tolist() == [0] * len(part_a) + list(range(1, len(span) + 2))
    assert sample.context_len == len(part_a)


def test_log_probs_in_a_batch_are_those_of_each_alone(tmp_path: Path, tokenizer_folder: Path) -> None:
    loaded = load(checkpoint(tmp_path / "model", tokenizer_folder))
    rows = cloze_items(TEXTS, 5)["en"]
    samples = [sequence(item, choice, loaded.tokenizer) for item in rows for choice in item.choices]
    together = log_probs(loaded.model, samples, 6)
    for sample, logs in zip(samples, together, strict=True):
        ids, positions, blocks = (
            torch.from_numpy(x)[None] for x in (sample.token_ids, sample.positions, sample.block_positions)
        )
        attend = DenseAttention(visible(ids.shape[1], torch.tensor([sample.context_len])))
        logits = loaded.model.logits(loaded.model(ids, positions, blocks, attend))[0].log_softmax(-1)
        expected = [logits[row, target] for row, target in enumerate(sample.targets.tolist()) if target >= 0]
        torch.testing.assert_close(logs, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_untrained_model_is_near_chance_and_a_biased_one_is_not(tmp_path: Path, tokenizer_folder: Path) -> None:
    loaded = load(checkpoint(tmp_path / "model", tokenizer_folder))
    item = Item("the ", ("ship", "friend that nobody knew", "nobody knew", "came home late"), " went down")
    # Untrained, every token costs alike, so that the shortest choice wins by either scoring.
    score = accuracy(loaded.model, loaded.tokenizer, [item], 4)
    assert (score.num_items, score.span, score.end) == (1, 1.0, 1.0)
    worse = Item(item.before, (*item.choices[1:], item.choices[0]), item.after)
    assert accuracy(loaded.model, loaded.tokenizer, [worse], 4).span == 0.0


def test_report_has_every_kind_of_mask_and_language(tmp_path: Path, tokenizer_folder: Path) -> None:
    figures = report(
        checkpoint(tmp_path / "model", tokenizer_folder), TEXTS, num_items=8, num_windows=4, window=24, batch=8
    )
    perplexities, cloze = figures["perplexity"], figures["cloze"]
    assert isinstance(perplexities, dict)
    assert isinstance(cloze, dict)
    assert set(perplexities) == {"[MASK]", "[sMASK]", "[gMASK]"}
    for values in perplexities.values():
        # An untrained model spreads its probability: perplexity is about the vocabulary's size.
        assert values == {"en": pytest.approx(400, rel=0.5), "zh": pytest.approx(400, rel=0.5)}
    assert cloze["en"]["items"] == 8
    assert len(list(tables(figures, ("span", "end")))) == 2
