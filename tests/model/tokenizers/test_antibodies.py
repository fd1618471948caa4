"""IgLM's tokenizer, and the prompts that the package iglm makes (see golden/check_iglm.py)."""

from pathlib import Path

import pytest

from model.config import CheckpointError
from model.families.iglm import FAMILY
from model.layout import LayoutError
from model.tokenizers.antibodies import Antibodies
from tests.model.tokenizers.fim_files import IGLM

ID = {token: i for i, token in enumerate(IGLM)}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Antibodies:
    (tmp_path / "vocab.txt").write_text("\n".join(IGLM))
    return Antibodies.read(tmp_path)


def test_tags_and_residues(tokenizer: Antibodies) -> None:
    ids = tokenizer.encode("[HEAVY][HUMAN]EV Q")
    assert ids == [ID[token] for token in ("[HEAVY]", "[HUMAN]", "E", "V", "Q")]
    assert tokenizer.decode(ids) == "[HEAVY][HUMAN]EVQ"
    assert [tokenizer.piece(i) for i in tokenizer.text_ids()] == list("ACDEFGHIKLMNPQRSTVWY")
    assert tokenizer.encode("eX[CLS]")[:3] == [ID["[UNK]"]] * 3
    assert not {ID["[CLS]"], ID["[SEP]"], ID["[MASK]"]} & set(tokenizer.encode("[CLS][SEP][MASK]"))


def test_a_prompt_is_the_package_s(tokenizer: Antibodies) -> None:
    (blank,) = FAMILY.layout.lay_out(["[HEAVY][HUMAN]EV", ("[MASK]",), "LVE"], tokenizer).blanks
    wanted = ["[HEAVY]", "[HUMAN]", "E", "V", "[MASK]", "L", "V", "E"]
    assert [*blank.context] == [ID[token] for token in wanted]
    assert (blank.start, blank.end) == (ID["[SEP]"], ID["[CLS]"])
    (blank,) = FAMILY.layout.lay_out(["[HEAVY][HUMAN]", ("[gMASK]",)], tokenizer).blanks
    assert (blank.context, blank.start, blank.end) == ((ID["[HEAVY]"],), ID["[HUMAN]"], ID["[SEP]"])


@pytest.mark.parametrize("text", ["", "EVQ", "[HEAVY]", "[HUMAN][HEAVY]EVQ", "[HEAVY]E"])
def test_a_text_without_chain_and_species_is_refused(tokenizer: Antibodies, text: str) -> None:
    with pytest.raises(LayoutError, match=r"begins with tags, such as \[HEAVY\]\[CAMEL\]"):
        FAMILY.layout.lay_out([text, ("[MASK]",), "LVE"] if text else [("[gMASK]",)], tokenizer)


@pytest.mark.parametrize(
    ("lines", "message"),
    [(IGLM[:-1], r"not IgLM's vocabulary, the only one for GPT-2's blocks: lacks \[LIGHT\]"), ((*IGLM, "A"), "a line")],
)
def test_another_vocabulary_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    with pytest.raises(CheckpointError, match=message):
        Antibodies.read(tmp_path)


def test_a_gpt2_s_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"vocab\.txt: no such file"):
        Antibodies.read(tmp_path)
