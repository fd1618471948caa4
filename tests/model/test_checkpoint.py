"""Loading: exact, or refused in one line that names what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint import load
from model.config import CheckpointError, GLMConfig
from quant.linear import Linear
from quant.schemes import SCHEMES
from tests.conftest import TinyCheckpoint

Tensors = dict[str, Tensor]
DENSE = "transformer.layers.1.attention.dense.weight"
NORM = "transformer.final_layernorm.weight"


@pytest.fixture(scope="module")
def original(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(original, tmp_path / "checkpoint")


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v != ...}))


def refusal(folder: Path, quant: str) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder, quant)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_every_tensor_is_loaded_exactly(original: Path) -> None:
    checkpoint = load(original)
    loaded = checkpoint.model.state_dict()
    stored = load_file(original / "model.safetensors")
    assert loaded.keys() == stored.keys()
    for name, tensor in stored.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.float()), name
    assert checkpoint.name == original.name
    assert not checkpoint.model.training


def test_int8_stores_codes_for_the_linear_layers_and_the_rest_as_it_is(original: Path) -> None:
    loaded = load(original, "int8").model
    stored = load_file(original / "model.safetensors")
    num_linear = 0
    for path, module in loaded.named_modules():
        if isinstance(module, Linear):
            num_linear += 1
            expected = SCHEMES["int8"]().quantize(stored.pop(f"{path}.weight"))
            for name, tensor in expected.items():
                assert torch.equal(getattr(module, name), tensor)
    assert num_linear == 8
    for name, tensor in stored.items():
        assert torch.equal(loaded.get_parameter(name), tensor.float()), name


@pytest.mark.parametrize("quant", SCHEMES)
def test_a_loaded_network_wants_no_gradients(original: Path, quant: str) -> None:
    assert not any(p.requires_grad or p.is_meta for p in load(original, quant).model.parameters())


def test_the_config_comes_back_from_its_json(tmp_path: Path) -> None:
    config = GLMConfig(3, 128, 4, 500, 64, 1e-6)
    (tmp_path / "config.json").write_text(config.to_json())
    assert GLMConfig.read(tmp_path) == config


@pytest.mark.parametrize("quant", SCHEMES)
class TestRefusal:
    def test_missing_tensor(self, folder: Path, quant: str) -> None:
        edit(folder, lambda tensors: tensors.pop(DENSE))
        assert refusal(folder, quant) == f"model.safetensors lacks {DENSE}"

    def test_left_over_tensor(self, folder: Path, quant: str) -> None:
        edit(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
        assert refusal(folder, quant) == "model.safetensors has unknown extra"

    @pytest.mark.parametrize("name", [DENSE, NORM, DENSE.replace("weight", "bias")])
    def test_wrong_shape(self, folder: Path, quant: str, name: str) -> None:
        edit(folder, lambda tensors: tensors.update({name: torch.zeros(64, 3)}))
        message = refusal(folder, quant)
        assert message.startswith(f"{name} has shape [64, 3], config.json asks for [64")

    @pytest.mark.parametrize("name", [DENSE, NORM])
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_weights_that_are_not_finite(self, folder: Path, quant: str, name: str, value: float) -> None:
        edit(folder, lambda tensors: tensors[name].flatten()[-1:].fill_(value))
        assert refusal(folder, quant) == f"{name} holds NaN or infinity"

    def test_weights_that_are_not_floating_point(self, folder: Path, quant: str) -> None:
        edit(folder, lambda tensors: tensors.update({NORM: torch.ones(64, dtype=torch.int8)}))
        assert refusal(folder, quant) == f"{NORM} has type torch.int8, expected floating point"

    @pytest.mark.parametrize("kept", [0, 4, 1000, -1])
    def test_truncated_weights(self, folder: Path, quant: str, kept: int) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:kept])
        assert "model.safetensors: not a readable safetensors file" in refusal(folder, quant)

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"])
    def test_missing_file(self, folder: Path, quant: str, file: str) -> None:
        (folder / file).unlink()
        assert refusal(folder, quant) == f"{folder / file}: no such file"

    def test_missing_folder(self, tmp_path: Path, quant: str) -> None:
        assert refusal(tmp_path / "nothing", quant) == f"{tmp_path / 'nothing'}: no such folder"

    @pytest.mark.parametrize("model_type", ["chatglm", "bert", None, ...])
    def test_wrong_model_type(self, folder: Path, quant: str, model_type: object) -> None:
        edit_config(folder, model_type=model_type)
        assert refusal(folder, quant) == f'{folder / "config.json"}: model_type must be "glm"'

    def test_config_that_is_not_json(self, folder: Path, quant: str) -> None:
        (folder / "config.json").write_text("{")
        assert "config.json: not JSON" in refusal(folder, quant)

    def test_config_without_a_size(self, folder: Path, quant: str) -> None:
        edit_config(folder, hidden_size=...)
        assert refusal(folder, quant) == f"{folder / 'config.json'}: missing hidden_size"

    @pytest.mark.parametrize("value", [0, -2, "64", None, True, [64]])
    def test_config_with_an_impossible_size(self, folder: Path, quant: str, value: object) -> None:
        edit_config(folder, num_layers=value)
        assert "num_layers must be a positive number" in refusal(folder, quant)

    def test_config_with_a_broken_number_of_layers(self, folder: Path, quant: str) -> None:
        edit_config(folder, num_layers=2.5)
        assert "num_layers" in refusal(folder, quant)

    def test_heads_that_do_not_divide_the_hidden_size(self, folder: Path, quant: str) -> None:
        edit_config(folder, num_attention_heads=5)
        assert "hidden_size 64 is not a multiple of num_attention_heads 5" in refusal(folder, quant)

    def test_tokenizer_bigger_than_the_embedding(self, folder: Path, quant: str) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        size = config["special_tokens"]["eop"] + 1
        config["special_tokens"]["eop"] = size
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        message = refusal(folder, quant)
        assert message == f"{folder}: the tokenizer has {size + 1} tokens, the model {size} embeddings"


@pytest.mark.parametrize("quant", SCHEMES)
def test_an_embedding_padded_past_the_tokenizer_is_taken(tiny_checkpoint: TinyCheckpoint, quant: str) -> None:
    assert load(tiny_checkpoint(vocab_size=512), quant).model.word_embeddings.weight.shape == (512, 64)
