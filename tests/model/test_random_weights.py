"""Networks with invented weights, as `serve --load-format dummy` has them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from engine.requests import Fill, Mask
from model.config import CheckpointError
from model.random_weights import invented
from tests.answers import wire
from tests.ranks import on_ranks


@pytest.fixture
def bare(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with everything but weights."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint(), folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_a_folder_without_weights_is_served(bare: Path, quant: str) -> None:
    config = EngineConfig(str(bare), quant=quant, quant_head="int8", kv_cache_gb=0.01, load_format="dummy")
    engine = Engine(config)
    assert engine.card.quant == quant
    events = engine.run(Fill((("the ", Mask("[MASK]")),), (3,), (3,)))
    (result,) = (wire(e.result) for e in events if isinstance(e, ResultDone))
    assert len(result["blanks"][0]["token_ids"]) == 3


def test_they_are_the_same_each_time_and_of_a_rank_its_share(bare: Path) -> None:
    first, second = invented(bare, "int8"), invented(bare, "int8")
    tensors = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors)
    parts = on_ranks(2, lambda ranks: invented(bare, "int8", ranks=ranks).model.num_parameters)
    assert max(parts) < first.num_parameters


def test_what_does_not_fit_is_one_line(bare: Path) -> None:
    with pytest.raises(CheckpointError, match="group_size 128"):
        invented(bare, "int4", group_size=128)
