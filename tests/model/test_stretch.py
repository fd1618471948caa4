"""Stretched rotary positions against transformers 5.24: both layouts of config.json, inside and beyond the old length.

Weights and tokens are those of the goldens; transformers itself computes the answers here.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Glm4Config, Glm4ForCausalLM, GlmConfig, GlmForCausalLM

from model.config import CheckpointError, Config
from model.families import family_of
from tests.model.test_references import TOLERANCE, case_of, golden, metadata, read, whole

CLASSES: dict[str, tuple[Any, Any]] = {
    "glm4": (GlmConfig, GlmForCausalLM),
    "glm4_0414": (Glm4Config, Glm4ForCausalLM),
}
ORIGINAL = 32  # positions; the text has 120
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear_by_an_old_name": {"type": "linear", "factor": 2.5},
    "yarn": YARN,
    "yarn_by_an_old_name": {"type": "yarn", "factor": 4, "original_max_position_embeddings": ORIGINAL},
    "attention_factor": YARN | {"attention_factor": 1.5},
    "mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 2.0},
    "mscale_alone": YARN | {"mscale": 0.707},
    "betas": YARN | {"beta_fast": 3, "beta_slow": 0.25},
    "beta_0": YARN | {"beta_fast": 0, "beta_slow": None},
    "not_truncated": YARN | {"beta_fast": 3, "beta_slow": 0.25, "truncate": False},
    "no_blend": YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "truncate": False},
    "factor_by_lengths": YARN | {"factor": None},
    "factor_below_1": {"rope_type": "yarn", "factor": 0.5},
    "original_length_left_out": {"rope_type": "yarn", "factor": 2.0},
    "base_inside": YARN | {"rope_theta": 777.0, "partial_rotary_factor": 1.0},
    "of_another_kind_are_ignored": {"rope_type": "linear", "factor": 4.0, "attention_factor": 3.0, "beta_fast": 2},
}
LAYOUTS = ("rope_scaling", "rope_parameters")


def reference(file: str, config: dict[str, Any], token_ids: Tensor) -> Tensor:
    config_class, model_class = CLASSES[file]
    described = config_class(**deepcopy(config))  # it changes the dictionaries that it is given
    described._attn_implementation = "eager"
    model = model_class(described).eval()
    model.load_state_dict(golden(file, "weights"))
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=token_ids[None], use_cache=False).logits[0].float(), dim=-1)


def flat(file: str, **fields: Any) -> dict[str, Any]:
    """config.json as transformers 4 wrote it, and these fields."""
    return {**metadata(file)["config_flat"], **fields}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("file", CLASSES)
def test_stretched_positions_give_transformers_log_probabilities(
    tmp_path: Path, file: str, layout: str, kind: str
) -> None:
    case, config = case_of(file, "long"), flat(file, **{layout: KINDS[kind]})
    if kind == "factor_by_lengths":
        config["max_position_embeddings"] = 4 * ORIGINAL
    expected = reference(file, config, case.token_ids)
    ours = whole(read(tmp_path, config, golden(file, "weights")), case)
    assert len(case) > 3 * ORIGINAL
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)
    assert (expected - case.logprobs).abs().max() > 100 * TOLERANCE  # the plain angles would not do


def test_rope_scaling_counts_where_both_layouts_are_there(tmp_path: Path) -> None:
    case = case_of("glm4", "long")
    config = flat("glm4", rope_scaling=KINDS["linear"], rope_parameters=YARN)
    ours = whole(read(tmp_path, config, golden("glm4", "weights")), case)
    torch.testing.assert_close(ours, reference("glm4", config, case.token_ids), rtol=0, atol=TOLERANCE)


def test_an_original_length_beside_the_sizes_counts(tmp_path: Path) -> None:
    case = case_of("glm4", "long")
    config = flat("glm4", rope_scaling=YARN, original_max_position_embeddings=ORIGINAL + 8)
    ours = whole(read(tmp_path, config, golden("glm4", "weights")), case)
    torch.testing.assert_close(ours, reference("glm4", config, case.token_ids), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        (None, 64), ({}, 64), ({"type": "default"}, 64),
        (YARN, 128),  # as GLM-4-0414's model card asks for it, max_position_embeddings unchanged
        ({"rope_type": "yarn", "factor": 4.0}, 256), (YARN | {"factor": None}, 64),
        ({"type": "linear", "factor": 2.5}, 160),
    ],
)  # fmt: skip
def test_as_many_positions_are_served_as_the_stretch_reaches(rope: dict[str, Any] | None, length: int) -> None:
    """vLLM's rule (its config, `_get_and_verify_max_len`): yarn from the original length, linear from the other one."""
    config = Config(flat("glm4_0414", rope_scaling=rope, max_position_embeddings=64))
    assert family_of(config).architecture(config).max_sequence_length == length


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("rope", "message"),
    [
        *(({"rope_type": kind, "factor": 2.0}, f"rope_type is '{kind}', only default, linear and yarn")
          for kind in ("dynamic", "llama3", "longrope", "proportional", "mrope", "YARN")),
        ({"type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'"),
        ({"rope_type": "yarn"}, "missing factor"),
        ({"rope_type": "linear"}, "missing factor"),
        ({"rope_type": "linear", "factor": None}, "missing factor"),
        ({"rope_type": "linear", "factor": 0}, "factor must be a positive number"),
        ({"rope_type": "linear", "factor": "4"}, "factor must be a positive number"),
        (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings must be a positive number"),
        (YARN | {"attention_factor": 0}, "attention_factor must be a positive number"),
        (YARN | {"beta_fast": -1}, "beta_fast must be a positive number"),
        (YARN | {"mscale": "1"}, "mscale must be a positive number"),
        (YARN | {"truncate": 1}, "truncate must be true or false, not 1"),
        (YARN | {"rope_theta": 1}, "rope_theta must be above 1"),
        (YARN | {"partial_rotary_factor": 1.5}, "partial_rotary_factor at most 1"),
        (YARN | {"partial_rotary_factor": 0.2}, "partial_rotary_factor turns 3 of a head's 16 numbers"),
        ({"full_attention": {"rope_type": "yarn"}}, "has an object in full_attention"),
        ("yarn", "must be an object, not 'yarn'"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(layout: str, rope: Any, message: str) -> None:
    config = Config(flat("glm4", **{layout: rope}))
    with pytest.raises(CheckpointError, match=message):
        family_of(config).architecture(config)
    with pytest.raises(CheckpointError, match=layout if "turns" not in message else "config.json"):
        family_of(config).architecture(config)
