"""A family and a scheme, one file each, serve over HTTP: fills and scores are those of the same weights in GLM."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.answers import FillResult
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import ResultDone
from server.protocols.native.schemas import InfillRequest, ScoreRequest
from server.settings import Limits
from tests.addition.conftest import Run
from tests.addition.served import SERVED
from tests.addition.toy_checkpoint import as_toy

FILL = {"text": "the [MASK] sang", "max_tokens": 4, "min_tokens": 4}
SCORE = {"text": "the [MASK] sang", "spans": [["bird"], ["stone"]]}


def test_a_family_and_a_scheme_are_served(
    addition: Callable[..., Run], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint()
    # With weights that two bytes hold exactly, the toy scheme computes what float weights do.
    tensors = load_file(folder / "model.safetensors")
    exact = {name: tensor.to(torch.bfloat16).half() for name, tensor in tensors.items()}
    save_file(exact, folder / "model.safetensors")
    engine = Engine(EngineConfig(folder, kv_cache_gb=0.01))
    requests = InfillRequest.model_validate(FILL).fill(Limits()), ScoreRequest.model_validate(SCORE).score(Limits())
    (filled,), scored = ([e.result for e in engine.run(r) if isinstance(e, ResultDone)] for r in requests)

    asked = [("GET", "/v1/models", None), ("POST", "/v1/infill", FILL), ("POST", "/v1/score", SCORE)]
    run = addition("families/toy.py", "schemes/half.py")
    quant = ("--quant", "half", "--quant-head", "half")
    found = run(SERVED, str(as_toy(folder, tmp_path / "toy")), json.dumps(asked), "serve --help", *quant)
    models, fill, score = (body for status, body in found["answers"] if status == 200)

    (model,) = models["data"]
    assert (model["family"], model["quantization"]) == ("toy", "half")
    assert "|half|" in found["shown"].replace(" ", "")
    (blank,) = fill["results"][0]["blanks"]
    assert isinstance(filled, FillResult)
    assert blank["token_ids"] == filled.blanks[0].token_ids
    assert blank["token_logprobs"] == pytest.approx(filled.blanks[0].token_logprobs, rel=1e-4)
    assert sums(score["results"]) == pytest.approx(
        [result.logprob for result in sorted(scored, key=lambda result: result.index)], rel=1e-4
    )


def sums(results: list[dict[str, Any]]) -> list[float]:
    return [result["logprob"] for result in sorted(results, key=lambda result: result["index"])]
