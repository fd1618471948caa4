"""Made-up checkpoints: read back, they are the same network in every layout."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch

from model.config import CheckpointError
from model.families.bert import BERT_NAMING
from model.families.glm130b import GLM130B_NAMING
from model.family import Format
from model.naming import Naming
from model.sharding import cuts
from model.synth import Synthetic, write_synthetic
from model.weights import Weights
from quant.usage import UsageError

WIDTH = 32
SHAPES: dict[str, tuple[int, ...]] = {
    "word_embeddings.weight": (64, WIDTH),
    "transformer.layers.0.input_layernorm.weight": (WIDTH,),
    "transformer.layers.0.attention.query_key_value.weight": (3 * WIDTH, WIDTH),
    "transformer.layers.0.attention.query_key_value.bias": (3 * WIDTH,),
    "transformer.layers.0.attention.dense.weight": (WIDTH, WIDTH),
    "transformer.layers.0.attention.dense.bias": (WIDTH,),
    "transformer.layers.0.mlp.dense_h_to_4h.weight": (8 * WIDTH, WIDTH),
    "transformer.layers.0.mlp.dense_4h_to_h.weight": (WIDTH, 4 * WIDTH),
}
CUTS = cuts((WIDTH, WIDTH, WIDTH), 2)


def made(naming: Naming = GLM130B_NAMING) -> Synthetic:
    return Synthetic(SHAPES, naming, CUTS, {"model_type": "glm-130b"}, seed=3, shard_bytes=20_000)


@pytest.mark.parametrize(
    ("naming", "format", "tp"),
    [
        (GLM130B_NAMING, "hf", 1),
        (GLM130B_NAMING, "bin", 1),
        (GLM130B_NAMING, "sat", 1),
        (GLM130B_NAMING, "sat", 4),
        (BERT_NAMING, "hf", 1),
        (BERT_NAMING, "bin", 1),
    ],
)
def test_every_layout_holds_the_same_network(tmp_path: Path, naming: Naming, format: Format, tp: int) -> None:
    write_synthetic(tmp_path / "hf", made())
    write_synthetic(tmp_path / "other", made(naming), format, tp)
    expected, weights = Weights(tmp_path / "hf", [GLM130B_NAMING]), Weights(tmp_path / "other", [naming], CUTS)
    weights.check({name: (shape, torch.float16) for name, shape in SHAPES.items()})
    for name in SHAPES:
        assert torch.equal(weights.read(name), expected.read(name)), name
    assert json.loads((tmp_path / "other" / "config.json").read_text()) == {"model_type": "glm-130b"}


def test_weights_are_of_the_usual_size(tmp_path: Path) -> None:
    write_synthetic(tmp_path, made())
    weights = Weights(tmp_path, [GLM130B_NAMING])
    assert weights.read("word_embeddings.weight").float().std() == pytest.approx(0.02, rel=0.1)
    assert weights.read("transformer.layers.0.input_layernorm.weight").float().mean() == pytest.approx(1, abs=0.05)


def test_the_published_names_are_in_the_files(tmp_path: Path) -> None:
    write_synthetic(tmp_path, made(), "sat", 2)
    assert (tmp_path / "latest").read_text() == "1"
    module = torch.load(tmp_path / "1" / "mp_rank_01_model_states.pt", weights_only=True)["module"]
    assert module["transformer.word_embeddings.weight"].shape == (32, WIDTH)
    assert module["transformer.layers.0.attention.dense.weight"].shape == (WIDTH, WIDTH // 2)


def test_ranks_that_do_not_divide_the_tensors_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are not divisible by 3"):
        write_synthetic(tmp_path / "new", made(), "sat", 3)
    with pytest.raises(UsageError, match="only the format sat is divided among ranks, not hf"):
        write_synthetic(tmp_path / "new", made(), "hf", 2)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("format", "tp"), [("hf", 1), ("bin", 1), ("sat", 1), ("sat", 2)])
def test_progress_comes_to_the_bytes_of_the_tensors(tmp_path: Path, format: Format, tp: int) -> None:
    told: list[int] = []
    write_synthetic(tmp_path, made(), format, tp, told.append)
    assert sum(told) == made().num_bytes == sum(2 * prod(shape) for shape in SHAPES.values())


def test_a_published_type_of_numbers(tmp_path: Path) -> None:
    write_synthetic(tmp_path, replace(made(), dtype=torch.bfloat16))
    weights = Weights(tmp_path, [GLM130B_NAMING])
    weights.check({name: (shape, torch.bfloat16) for name, shape in SHAPES.items()})


def test_nothing_is_written_over_or_onto_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").touch()
    with pytest.raises(CheckpointError, match="old: not an empty folder"):
        write_synthetic(tmp_path / "old", made())
    huge = replace(made(), shapes={"word_embeddings.weight": (10**9, 10**9)})
    with pytest.raises(CheckpointError, match=r"new: needs 2000000000.0 GB, [0-9.]+ are free"):
        write_synthetic(tmp_path / "new", huge)
    assert not (tmp_path / "new").exists()
