"""Faults 13, 17, 22 and 23: requests at and over every edge, answered by a real engine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file, save_file

from tests.faults.conftest import Server

Refused = Callable[..., dict[str, Any]]
SPECIAL = ["<sop>", "<eop>", "<|startofpiece|>", "<|endofpiece|>", "[CLS]", "</s>", "<pad>", "<|endoftext|>", "<0x0A>"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/infill", {"text": "a", "n": 2**62}, "n"),
        ("/v1/infill", {"text": "a", "n": -(2**62)}, "n"),
        ("/v1/infill", {"text": "a", "n": 1.5}, "n"),
        ("/v1/infill", {"text": "a", "n": True}, "n"),
        ("/v1/infill", {"text": "a", "num_beams": 10**9}, "num_beams"),
        ("/v1/infill", {"text": "a", "max_tokens": 10**9}, "max_tokens"),
        ("/v1/infill", {"text": "a", "max_tokens": -1}, "max_tokens"),
        ("/v1/infill", {"text": "a", "max_tokens": [1] * 100_000}, "max_tokens"),
        ("/v1/infill", {"text": "a", "logprobs": 10**9}, "logprobs"),
        ("/v1/infill", {"text": "a", "top_k": -1}, "top_k"),
        ("/v1/infill", {"text": "a", "top_k": 2**40}, "top_k"),
        ("/v1/infill", {"text": "a", "no_repeat_ngram_size": 2**40}, "no_repeat_ngram_size"),
        ("/v1/infill", {"text": "a", "repetition_penalty": 1e300}, "repetition_penalty"),
        ("/v1/infill", {"text": "a", "length_penalty": 1e300}, "length_penalty"),
        ("/v1/infill", {"text": "a", "seed": 2**64}, None),
        ("/v1/infill", {"text": "a", "stop": ["x"] * 100_000}, "stop"),
        ("/v1/infill", {"text": "a", "logit_bias": {str(i): 1 for i in range(100_000)}}, "logit_bias"),
        ("/v1/infill", {"text": "a", "logit_bias": {"999999999": 1}}, "logit_bias"),
        ("/v1/infill", {"text": "a", "order": list(range(100_000))}, "order"),
        ("/v1/infill", {"text": "[MASK]" * 10_000}, "text"),
        ("/v1/infill", {"text": ["a"] * 100_000}, "text"),
        ("/v1/infill", {"segments": ["a"] * 100_000}, "segments"),
        ("/v1/infill", {"text": "a", "timeout_s": 10**9}, "timeout_s"),
        ("/v1/score", {"text": "a [MASK]", "spans": [["b"]] * 20_000}, "spans"),
        ("/v1/score", {"context": "a", "targets": ["b"] * 20_000}, "targets"),
        ("/v1/score", {"text": "a", "orders": 10**9}, "orders"),
        ("/v1/score", {"text": "a", "orders": [[0] * 100_000]}, "orders"),
        ("/v1/score", {"text": "[MASK]" * 20, "spans": ["b"] * 20, "orders": "all"}, "orders"),
        ("/v1/detokenize", {"tokens": [1] * 200_000}, "tokens"),
        ("/v1/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/v1/detokenize", {"tokens": [10**6]}, "tokens"),
    ],
)
def test_amplification_is_refused_naming_the_field(
    server: Server, refused: Refused, path: str, body: Any, param: str | None
) -> None:
    refused(server.post(path, body), 400, param)


@pytest.mark.parametrize("special", SPECIAL)
def test_special_tokens_in_a_text_are_text(server: Server, special: str) -> None:
    ids = server.post("/v1/tokenize", {"text": special}).json()["tokens"]
    assert len(ids) > 1
    assert server.post("/v1/detokenize", {"tokens": ids}).json()["text"] == special
    answer = server.post("/v1/score", {"text": "a [MASK] b", "spans": [special]}).json()
    scored = answer["results"][0]["spans"][0]["token_ids"]
    assert server.post("/v1/detokenize", {"tokens": scored}).json()["text"].strip() == special
    filled = server.fill(text=f"a {special} [MASK]").json()["results"][0]
    assert filled["text"].startswith(f"a {special} ")
    assert len(filled["blanks"]) == 1


@pytest.mark.parametrize("mask", ["[MASK]", "[sMASK]", "[gMASK]"])
def test_masks_are_text_in_segments_and_refused_in_candidates(server: Server, refused: Refused, mask: str) -> None:
    (result,) = server.fill(text=None, segments=[f"say {mask} ", {"mask": "[MASK]"}]).json()["results"]
    assert len(result["blanks"]) == 1
    assert result["text"].startswith(f"say {mask} ")
    assert result["blanks"][0]["start"] == len(f"say {mask} ")
    # As text a mask is spelt out in many tokens; as a mask it is one.
    plain = server.fill(text=None, segments=[f"say {mask} ", {"mask": "[MASK]"}]).json()["usage"]["prompt_tokens"]
    special = server.fill(text=f"say {mask} [MASK]").json()["usage"]["prompt_tokens"]
    assert plain > special
    refused(server.post("/v1/score", {"text": "a [MASK]", "spans": [f"b {mask}"]}), 400, "spans")
    refused(server.post("/v1/score", {"context": "a", "target": mask}), 400, "target")


@pytest.mark.parametrize(
    ("text", "blanks"),
    [
        ("", 1),
        ("no mask", 1),
        ("[MASK]", 1),
        ("[MASK][MASK]", 2),
        ("[MASK] in between [sMASK]", 2),
        ("[gMASK] [sMASK] [MASK]", 3),
        ("[MASK]" * 64, 64),
        ("[mask] [ MASK] [XMASK]", 1),
    ],
)
@pytest.mark.parametrize("strategy", ["append", "reencode", "parallel"])
def test_masks_anywhere_are_filled(server: Server, text: str, blanks: int, strategy: str) -> None:
    response = server.fill(text=text, strategy=strategy, max_tokens=1, min_tokens=1)
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert len(result["blanks"]) == blanks
    assert all(len(b["token_ids"]) == 1 for b in result["blanks"])


def test_a_mask_that_the_model_lacks_is_refused(
    launch: Callable[..., Server], roomy: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = shutil.copytree(roomy, tmp_path / "without")
    path = folder / "tokenizer_config.json"
    special = json.loads(path.read_text())["special_tokens"]
    path.write_text(json.dumps({"special_tokens": {k: v for k, v in special.items() if k != "smask"}}))
    server = launch(folder)
    assert refused(server.fill(text="a [sMASK]"), 400, "text")["code"] == "unsupported_mask"
    assert server.fill(text="a [MASK]").status_code == 200


def test_a_text_at_the_limit_passes_and_one_token_more_does_not(server: Server, refused: Refused) -> None:
    limits = httpx.get(f"{server.url}/v1/models").json()["data"][0]["limits"]
    # A digit is a token.
    room = limits["max_context"] - server.fill(text="7[MASK]").json()["usage"]["prompt_tokens"]
    fits = "7" * (room + 1) + "[MASK]"
    assert server.fill(text=fits).json()["usage"]["prompt_tokens"] == limits["max_context"]
    error = refused(server.fill(text="7" + fits), 400, "text")
    assert (error["code"], str(limits["max_context"]) in error["message"]) == ("context_length_exceeded", True)
    refused(server.fill(max_tokens=limits["max_span"] + 1), 400, "max_tokens")


def test_a_request_ends_at_its_deadline(server: Server) -> None:
    body = {"max_tokens": 900, "min_tokens": 900, "n": 8}
    for response in (
        server.fill(**body, timeout_s=0.3),
        server.post("/v1/infill", {"text": "a", **body}, headers={"x-request-timeout-s": "0.3"}),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline")
    assert server.metric("requests_total", outcome="deadline") >= 2


def test_one_row_that_is_not_finite_fails_its_own_request_only(
    launch: Callable[..., Server], roomy: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(roomy, tmp_path / "overflowing")
    path = folder / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    (name,) = [name for name in tensors if name.endswith("position_embeddings.weight") and "block" not in name]
    tensors[name][60] = 1e38  # finite, but its square is not
    save_file(tensors, path)
    server = launch(folder)
    good = {"text": "the hill", "max_tokens": 4}
    clean = server.fill(**good).json()["results"]
    bad = server.fill(text="7" * 100 + "[MASK]")
    assert bad.status_code == 500
    assert bad.headers["x-should-retry"] == "false"
    assert set(bad.json()["error"]["message"].split()) >= {"internal", "error;"}
    assert server.fill(**good).json()["results"] == clean
    server.until(lambda: server.metric("nonfinite_rows_total") == 1)
