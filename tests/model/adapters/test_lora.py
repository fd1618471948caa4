"""LoRA against peft: the same logits as its own merged model, for what it writes of transformers' GLM-4 and of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.adapters.held import HeldAdapters
from model.adapters.reading import read_adapter
from model.adapters.target import AdapterTarget
from model.attention import DenseAttention, visible
from model.config import CheckpointError, Config
from model.families import family_of
from model.network import Network
from quant.linear import Linear
from tests.model.test_references import FILES, config_of, golden, metadata, read

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-4
NUM_TOKENS = 12
Make = Callable[..., Path]


def logits(model: Network, adapters: HeldAdapters | None = None, number: int = 0) -> Tensor:
    """Of all rows of a text, in the layout of the reference's own forward pass."""
    ids = torch.arange(NUM_TOKENS)[None]
    zeros = torch.zeros_like(ids)
    causal = model.architecture.causal
    mask = visible(NUM_TOKENS, torch.tensor([0 if causal else NUM_TOKENS]))
    if adapters is not None:
        adapters.select([number] * NUM_TOKENS)
    with torch.inference_mode():
        hidden = model(*(x[0] for x in (ids, ids, zeros)), Flat(mask))
        return model.logits(hidden)


class Flat(DenseAttention):
    """Of one text, [num_tokens, heads, head_dim]: rows as the runner packs them."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, reach: int | None = None) -> Tensor:
        return super().__call__(layer, q[None], k[None], v[None], reach)[0]

    def share(self, marked: Tensor) -> Tensor:
        """marked [num_tokens] → float32 [num_tokens]."""
        return super().share(marked[None])[0]


def ours(tmp_path: Path, file: str) -> tuple[Network, AdapterTarget]:
    tmp_path.mkdir(exist_ok=True)
    model = read(tmp_path, config_of(file), golden(file, "weights")).requires_grad_(False)
    return model, AdapterTarget(model, family_of(Config(config_of(file))).namings)


def randomised(model: nn.Module) -> None:
    """Every trained number another one: B begins as zeros."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += noise * (0.2 if "lora_" in name else 0.05)


def glm4() -> Any:
    """transformers' GLM-4 with the golden's weights."""
    config = transformers.GlmConfig(**{k: v for k, v in metadata("glm4")["config"].items() if k != "model_type"})
    model = transformers.GlmForCausalLM(config)
    model.load_state_dict(golden("glm4", "weights"))
    return model.eval()


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": LINEARS},
        {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 32},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.(k_proj|down_proj)", "bias": "lora_only"},
        {"target_modules": LINEARS, "bias": "all"},
        {"target_modules": ["q_proj", "k_proj"], "lora_bias": True},
        {"target_modules": [*LINEARS, "lm_head"], "layers_to_transform": None},
        {
            "target_modules": LINEARS,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5},
            "alpha_pattern": {r"layers\.\d+\.self_attn\.o_proj": 40, "v_proj": 1},
        },
        # query_key_value is a name of GLM-4's other layout, dense one of ours; these folders have neither.
        {"target_modules": ["q_proj", "c_attn", "query_key_value", "dense"]},
        {"target_modules": LINEARS, "exclude_modules": ["o_proj", "c_proj", "dense"]},
        {"target_modules": LINEARS, "exclude_modules": r".*\.(o_proj|no_such)"},
        {"target_modules": LINEARS, "init_lora_weights": "mica", "r": 4},
        {"target_modules": LINEARS, "init_lora_weights": "Gaussian"},
        {"target_modules": LINEARS, "init_lora_weights": "orthogonal"},
        {"target_modules": LINEARS, "init_lora_weights": False, "lora_alpha": -4},
        {"target_modules": LINEARS, "lora_alpha": 0, "alpha_pattern": {"v_proj": 8, "q_proj": -1.5}},
    ],
    ids=lambda options: "-".join(str(v)[:24] for v in options.values()),
)
def test_logits_are_those_of_peft_s_merged_glm4(tmp_path: Path, options: dict[str, Any]) -> None:
    wrapped = peft.get_peft_model(glm4(), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    randomised(wrapped)
    wrapped.save_pretrained(str(tmp_path / "lora"))
    model, base = ours(tmp_path, "glm4")
    before = logits(model)
    held = HeldAdapters(model)
    held.add(1, read_adapter(tmp_path / "lora", base))
    with torch.inference_mode():
        expected = wrapped.merge_and_unload()(torch.arange(NUM_TOKENS)[None]).logits[0]
    found = logits(model, held, 1)
    assert (found - before).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert torch.equal(logits(model, held, 0), before)
    held.drop(1)
    assert all(getattr(module, "adapted", None) is None for module in model.modules())


class Plain(nn.Module):
    """Our network with torch's own linears, which peft knows; its names are ours."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.word_embeddings = model.word_embeddings
        self.transformer = model.transformer
        for path, module in list(model.transformer.named_modules()):
            if isinstance(module, Linear):
                linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
                linear.load_state_dict(module.state_dict())
                parent, _, leaf = path.rpartition(".")
                setattr(model.transformer.get_submodule(parent), leaf, linear)


@pytest.mark.parametrize("file", FILES)
def test_logits_are_those_of_peft_s_merged_copy_of_our_network(tmp_path: Path, file: str) -> None:
    other, _ = ours(tmp_path / "other", file)
    targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    wrapped = peft.get_peft_model(Plain(other), peft.LoraConfig(target_modules=targets, r=4, bias="lora_only"))
    randomised(wrapped)
    wrapped.save_pretrained(str(tmp_path / "lora"))
    assert any(
        "base_model.model.transformer.layers.1" in n for n in load_file(tmp_path / "lora/adapter_model.safetensors")
    )
    wrapped.merge_and_unload()  # in place: the linears of `other`
    model, base = ours(tmp_path / "mine", file)
    held = HeldAdapters(model)
    held.add(7, read_adapter(tmp_path / "lora", base))
    torch.testing.assert_close(logits(model, held, 7), logits(other), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pickled", [False, True])
def test_published_names_of_every_kind(tmp_path: Path, pickled: bool) -> None:
    """GLM's hub prefix, an adapter's name in the middle, and a pickle."""
    model, base = ours(tmp_path, "glm_sat")
    width = model.architecture.hidden_size
    path = "base_model.model.glm.transformer.layers.0.attention.query_key_value"
    down, up = torch.randn(2, width), torch.randn(3 * width, 2)
    tensors = {f"{path}.lora_A.default.weight": down, f"{path}.lora_B.weight": up}
    folder = write(tmp_path / "lora", {"target_modules": ["query_key_value"], "r": 2, "lora_alpha": 4}, {})
    if pickled:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    else:
        save_file(tensors, folder / "adapter_model.safetensors")
    (piece,) = read_adapter(folder, base).pieces["transformer.layers.0.attention.query_key_value"]
    assert torch.equal(piece.up, 2 * up.T)


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


A, B = "base_model.model.transformer.layers.0.attention.dense.lora_A.weight", "base_model.model.transformer.layers.0.attention.dense.lora_B.weight"  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"use_dora": True}, {}, "adapter_config.json: use_dora is not supported"),
        ({"peft_type": "LOHA"}, {}, "peft_type 'LOHA' is not supported"),
        ({"peft_type": "IA3"}, {}, "peft_type 'IA3' is not supported"),
        ({"peft_type": "ADALORA"}, {}, "peft_type 'ADALORA' is not supported"),
        ({"peft_type": ["LORA"]}, {}, "peft_type ['LORA'] is not supported"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save is not supported"),
        ({"layer_replication": [[0, 2]]}, {}, "layer_replication is not supported"),
        ({"trainable_token_indices": [1]}, {}, "trainable_token_indices is not supported"),
        ({"some_new_thing": 1}, {}, "some_new_thing is not supported"),
        *(({"init_lora_weights": start}, {}, f"init_lora_weights '{start}' is not supported: it changes the base")
          for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "something_new")),
        ({"bias": "some"}, {}, "bias is 'some'"),
        ({"target_modules": ["query_key_value"]}, {}, "target_modules: query_key_value has no tensors"),
        ({"target_modules": 5}, {}, "target_modules must be a string or a list"),
        ({"r": 3}, {}, "lora_A has rank 2, adapter_config.json says 3"),
        ({"r": None, "rank_pattern": {"dense": 0}}, {}, "rank_pattern has 0"),
        ({"rank_pattern": {"(a+)+": 2}}, {}, "the pattern '(a+)+' is not supported"),
        ({"alpha_pattern": {"[": 2}}, {}, "is no pattern"),
        ({"alpha_pattern": []}, {}, "alpha_pattern must be an object"),
        ({"lora_alpha": "x"}, {}, "alpha_pattern has 'x', a number is needed"),
        ({"lora_alpha": float("nan")}, {}, "alpha_pattern has nan, a number is needed"),
        ({"r": -2}, {}, "rank_pattern has -2, a positive number is needed"),
        ({}, {A: torch.zeros(2, 63)}, "lora_A is [2, 63], this model needs [2, 64]"),
        ({}, {B: torch.zeros(65, 2)}, "lora_B is [65, 2], this model needs [64, 2]"),
        ({}, {A: torch.full((2, 64), torch.nan)}, "holds NaN"),
        ({}, {A: torch.zeros(2, 64, dtype=torch.int8)}, "expected floating point"),
        ({}, {A.replace("lora_A", "lora_C"): torch.zeros(2)}, "lora_C.weight is not supported"),
        ({}, {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(2)}, "lora_magnitude_vector is not"),
        ({}, {A.replace("layers.0", "layers.9"): torch.zeros(2, 64), B.replace("layers.0", "layers.9"): torch.zeros(64, 2)}, "layers.9.attention.dense is not a linear layer"),  # noqa: E501
        ({}, {A.replace("dense", "rotary"): torch.zeros(2, 64)}, "lacks lora_B.weight"),
        ({"bias": "all"}, {"base_model.model.x.bias": torch.zeros(2)}, "x.bias [2] is not the bias of a linear layer"),
        ({"base_fingerprint": "0123", "base_model_name_or_path": "other"}, {}, "trained on another base, 'other'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, Tensor], message: str
) -> None:
    _, base = ours(tmp_path, "glm_sat")
    whole = {A: torch.zeros(2, 64), B: torch.zeros(64, 2)} | tensors
    folder = write(tmp_path / "lora", {"r": 2, "target_modules": ["dense"]} | config, whole)
    with pytest.raises(CheckpointError) as raised:
        read_adapter(folder, base)
    assert message in str(raised.value)
    assert str(raised.value).startswith("adapter lora: ")
    assert "\n" not in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_folders_that_are_none(tmp_path: Path) -> None:
    _, base = ours(tmp_path, "glm_sat")
    for make, message in (
        (lambda f: None, "no such folder"),
        (lambda f: f.mkdir(), "holds no adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json: not JSON"),
        (lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'), "holds neither adapter_model"),
        (lambda f: (f / "adapter_model.safetensors").write_text("x"), "not a readable safetensors file"),
    ):
        make(tmp_path / "a")
        with pytest.raises(CheckpointError, match=message):
            read_adapter(tmp_path / "a", base)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    _, base = ours(tmp_path, "glm_sat")
    folder = write(tmp_path / "lora", {"r": 2}, {})
    (folder / "adapter_model.safetensors").unlink()
    torch.save({A: Payload(tmp_path / "canary")}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="holds more than tensors"):
        read_adapter(folder, base)
    assert not (tmp_path / "canary").exists()


def test_a_fingerprint_is_the_base_s_however_it_is_stored(tmp_path: Path) -> None:
    model, base = ours(tmp_path, "glm_sat")
    folder = write(tmp_path / "lora", {"r": 2, "base_fingerprint": base.fingerprint}, {A: torch.zeros(2, 64), B: torch.zeros(64, 2)})  # fmt: skip  # noqa: E501
    read_adapter(folder, base)
    model.transformer.final_layernorm.weight.data[0] += 1
    with pytest.raises(CheckpointError, match="another base"):
        read_adapter(folder, AdapterTarget(model))
