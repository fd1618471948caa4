"""Loading: exact, or refused in one line that names what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.checkpoint import load, matrices, quantized
from model.config import CheckpointError, Config
from model.convert import Conversion, Recipe
from model.families import glm
from model.storage import Storage
from quant.linear import Linear
from quant.registry import build
from quant.schemes.none import Float
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


def refusal(folder: Path, quant: str | None, group_size: int | None = None, head: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder, quant, group_size=group_size, head=head)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_every_tensor_is_loaded_exactly(original: Path) -> None:
    checkpoint = load(original)
    loaded = checkpoint.model.state_dict()
    stored = load_file(original / "model.safetensors")
    assert loaded.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name].float(), tensor.float()), name
    for _, module in matrices(checkpoint.model):
        assert module.get_parameter("weight").dtype == Float.kept(torch.float16)
    assert loaded["transformer.final_layernorm.weight"].dtype == torch.float32
    assert checkpoint.name == original.name
    assert not checkpoint.model.training


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_linear_layers_are_packed_codes_and_the_rest_is_as_it_is(original: Path, quant: str) -> None:
    loaded = load(original, quant, head="none").model
    stored = load_file(original / "model.safetensors")
    num_linear = 0
    for path, module in loaded.named_modules():
        if isinstance(module, Linear):
            num_linear += 1
            scheme = build(quant)
            expected = scheme.pack(scheme.quantize(stored.pop(f"{path}.weight")))
            assert module.packed().keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(module.packed()[name], tensor)
    assert num_linear == 8
    for name, tensor in stored.items():
        assert torch.equal(loaded.get_parameter(name).float(), tensor.float()), name


def test_a_weight_of_many_rows_is_quantized_as_if_at_once() -> None:
    weight = torch.randn(3000, 512, generator=torch.Generator().manual_seed(0))  # more than the rows taken at once
    for scheme in (build("none"), build("int8"), build("int4"), build("int4", group_size=0)):
        made, whole = quantized(scheme, weight, "w"), scheme.quantize(weight)
        assert all(torch.equal(made[name], whole[name]) for name in whole)


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_a_loaded_network_wants_no_gradients(original: Path, quant: str) -> None:
    assert not any(p.requires_grad or p.is_meta for p in load(original, quant).model.parameters())


def test_the_config_comes_back_from_its_json(tmp_path: Path) -> None:
    architecture = glm.architecture(3, 128, 4, 500, 64, 1e-6)
    (tmp_path / "config.json").write_text(json.dumps(glm.config(architecture)))
    assert glm.FAMILY.architecture(Config.read(tmp_path)) == architecture


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
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
        message = refusal(folder, quant)
        if file == "model.safetensors":
            assert message == f"{folder}: holds config.json, tokenizer.model, tokenizer_config.json and no weights"
        else:
            assert message.startswith(f"{folder / file}: no such file; ")

    def test_missing_folder(self, tmp_path: Path, quant: str) -> None:
        assert refusal(tmp_path / "nothing", quant) == f"{tmp_path / 'nothing'}: no such folder"

    @pytest.mark.parametrize("model_type", ["mamba", None, ..., ["glm"]])
    def test_model_type_of_no_known_family(self, folder: Path, quant: str, model_type: object) -> None:
        edit_config(folder, model_type=model_type)
        assert refusal(folder, quant).startswith(
            f"{folder / 'config.json'}: {'has no' if model_type in (None, ...) else 'no known family has'} model_type"
        )

    @pytest.mark.parametrize("model_type", ["chatglm", "bert", "glm-130b"])
    def test_model_type_of_another_family(self, folder: Path, quant: str, model_type: object) -> None:
        edit_config(folder, model_type=model_type)
        assert refusal(folder, quant)

    def test_config_that_is_not_json(self, folder: Path, quant: str) -> None:
        (folder / "config.json").write_text("{")
        assert "config.json: not JSON" in refusal(folder, quant)

    def test_config_without_a_size(self, folder: Path, quant: str) -> None:
        edit_config(folder, hidden_size=...)
        assert refusal(folder, quant) == f"{folder / 'config.json'}: missing hidden_size"

    @pytest.mark.parametrize("value", [0, -2, "64", True, [64]])
    def test_config_with_an_impossible_size(self, folder: Path, quant: str, value: object) -> None:
        edit_config(folder, num_layers=value)
        assert "num_layers must be a positive number" in refusal(folder, quant)

    def test_config_with_a_size_beyond_counting(self, folder: Path, quant: str) -> None:
        edit_config(folder, num_layers=10**12)
        assert refusal(folder, quant).endswith("num_layers is 1000000000000, the most is 2147483647")

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


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_an_embedding_padded_past_the_tokenizer_is_taken(tiny_checkpoint: TinyCheckpoint, quant: str) -> None:
    table = load(tiny_checkpoint(vocab_size=512), quant).model.word_embeddings
    assert (table.out_features, table.in_features) == (512, 64)


def test_a_group_that_does_not_divide_a_weight_is_refused_with_its_name(original: Path) -> None:
    name = "transformer.layers.0.attention.query_key_value.weight"
    assert refusal(original, "int4", 128) == f"{name}: group_size 128 does not divide the 64 inputs"


def test_a_float_folder_is_float_when_nothing_is_asked_for(original: Path) -> None:
    assert load(original).storage == Storage("none", head="none")


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_the_head_is_int8_where_blocks_are_quantized_unless_another_is_asked(original: Path, quant: str) -> None:
    assert load(original, quant).storage.head == "int8"
    assert load(original, quant, head="none").storage.head == "none"
    assert load(original, quant, head="int4").storage.head == "int4"


def test_a_quantized_folder_keeps_the_head_that_it_was_stored_with(original: Path, tmp_path: Path) -> None:
    for head in ("none", "int8"):
        Conversion(original, tmp_path / head, Recipe(Storage("int4", 32, head))).run()
        for asked in (None, "int4"):
            assert load(tmp_path / head, asked).storage == Storage("int4", 32, head)


class TestShards:
    @pytest.fixture
    def sharded(self, folder: Path) -> Path:
        """Two shards, the head of the network in the first."""
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        places = {name: f"part-{1 + ('layers.1' in name)}.safetensors" for name in tensors}
        for place in set(places.values()):
            save_file({name: t for name, t in tensors.items() if places[name] == place}, folder / place)
        self.write_index(folder, places)
        return folder

    @staticmethod
    def write_index(folder: Path, places: dict[str, str]) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    @staticmethod
    def places(folder: Path) -> dict[str, str]:
        places: dict[str, str] = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        return places

    @pytest.mark.parametrize("quant", ["none", "int8", "int4"])
    def test_are_read_like_one_file(self, original: Path, sharded: Path, quant: str) -> None:
        expected = load(original, quant).model.state_dict()
        loaded = load(sharded, quant).model.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)

    def test_a_single_file_goes_before_an_index(self, original: Path, sharded: Path) -> None:
        shutil.copy(original / "model.safetensors", sharded)
        (sharded / "part-1.safetensors").unlink()
        load(sharded)

    def test_missing_shard(self, sharded: Path) -> None:
        (sharded / "part-2.safetensors").unlink()
        index = sharded / "model.safetensors.index.json"
        assert refusal(sharded, "none") == f"{index}: names part-2.safetensors, not in the folder"

    def test_missing_tensor(self, sharded: Path) -> None:
        self.write_index(sharded, self.places(sharded) | {"extra": "part-1.safetensors"})
        message = "part-1.safetensors lacks extra, which model.safetensors.index.json places there"
        assert refusal(sharded, "none") == message

    def test_tensor_that_the_index_does_not_know(self, sharded: Path) -> None:
        self.write_index(sharded, {name: place for name, place in self.places(sharded).items() if name != DENSE})
        message = f"part-2.safetensors has {DENSE}, which model.safetensors.index.json does not place there"
        assert refusal(sharded, "none") == message

    def test_tensor_that_the_network_lacks(self, sharded: Path) -> None:
        save_file({"extra": torch.zeros(1)}, sharded / "part-3.safetensors")
        self.write_index(sharded, self.places(sharded) | {"extra": "part-3.safetensors"})
        assert refusal(sharded, "none") == "model.safetensors.index.json has unknown extra"

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../a"}}', "\xff"])
    def test_index_that_is_none(self, sharded: Path, text: str) -> None:
        (sharded / "model.safetensors.index.json").write_bytes(text.encode("latin-1"))
        assert "model.safetensors.index.json: not an index of safetensors files" in refusal(sharded, "none")


@pytest.fixture(scope="module")
def converted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is quantized already."""
    folder = tmp_path_factory.mktemp("converted") / "int4"
    Conversion(original, folder, Recipe(Storage("int4", 32))).run()
    return folder


class TestQuantizedFolder:
    SCALE = f"{DENSE}_scale"
    FILE = "model-00001-of-00001.safetensors"

    @pytest.fixture
    def folder(self, converted: Path, tmp_path: Path) -> Path:
        return shutil.copytree(converted, tmp_path / "quantized")

    def edit(self, folder: Path, change: Callable[[Tensors], object]) -> None:
        tensors = load_file(folder / self.FILE)
        change(tensors)
        save_file(tensors, folder / self.FILE)

    @pytest.mark.parametrize(
        ("quant", "group_size"), [(None, None), ("none", None), ("none", 64), ("int4", None), ("int4", 32)]
    )
    def test_says_itself_how_it_is_stored(self, converted: Path, quant: str | None, group_size: int | None) -> None:
        assert load(converted, quant, group_size=group_size).quant == "int4"

    @pytest.mark.parametrize(
        ("quant", "group_size", "head", "asked"),
        [("int8", None, None, "int8"), ("int4", 64, None, "int4 group_size 64"), (None, None, "int8", None)],
    )
    def test_is_not_loaded_as_something_else(
        self, converted: Path, quant: str | None, group_size: int | None, head: str | None, asked: str | None
    ) -> None:
        asked = asked or "int4 group_size 32 head int8"
        message = f"{converted}: stored as int4 group_size 32, which cannot be loaded as {asked}"
        assert refusal(converted, quant, group_size, head) == message

    def test_a_group_size_means_nothing_to_int8(self, original: Path, tmp_path: Path) -> None:
        Conversion(original, tmp_path / "int8", Recipe(Storage("int8"))).run()
        assert load(tmp_path / "int8", "int8", group_size=0).quant == "int8"

    def test_no_weight_becomes_float(self, converted: Path) -> None:
        sizes = {64 * 64, 3 * 64 * 64, 4 * 64 * 64}

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                for tensor in tree_leaves(out):
                    if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta:
                        assert tensor.numel() not in sizes, func
                return out

        with Watch():
            load(converted)

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({"quant_method": "hqq"}, "quantization_config has quant_method 'hqq'"),
            ("int4", "quantization_config is 'int4', no object"),
            ({"scheme": "int3"}, "quantization_config: no such scheme: int3"),
            ({"scheme": "none"}, "quantization_config names no scheme"),
            ({"scheme": None}, "scheme of quantization_config must be of type str"),
            ({"scheme": "int4", "group_size": 32.0}, "group_size of quantization_config must be of type int"),
            ({"scheme": "int4", "group_size": 48}, "quantization_config: group_size must be one of 0, 32, 64, 128"),
            ({"scheme": "int4", "head": "nf4"}, "quantization_config: no such scheme for the embedding: nf4"),
        ],
    )
    def test_unknown_storage(self, folder: Path, config: object, says: str) -> None:
        if isinstance(config, dict):
            config = {"quant_method": "glm-infill"} | config
        edit_config(folder, quantization_config=config)
        assert says in refusal(folder, None)

    def test_other_groups_than_the_config_says(self, folder: Path) -> None:
        edit_config(folder, quantization_config={"quant_method": "glm-infill", "scheme": "int4", "group_size": 64})
        assert "_scale has shape [192, 2], config.json asks for [192, 1]" in refusal(folder, None)

    def test_float_weights_that_the_config_denies(self, original: Path, folder: Path) -> None:
        shutil.copy(original / "model.safetensors", folder)
        assert refusal(folder, None).startswith("model.safetensors lacks transformer.layers.0.attention.dense.weight_")

    def test_quantized_weights_that_the_config_does_not_name(self, folder: Path) -> None:
        edit_config(folder, quantization_config=...)
        assert refusal(folder, None).startswith("model.safetensors.index.json has unknown ")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_scales_that_are_not_finite(self, folder: Path, value: float) -> None:
        self.edit(folder, lambda tensors: tensors[self.SCALE].flatten()[-1:].fill_(value))
        assert refusal(folder, None) == f"{self.SCALE} holds NaN or infinity"

    def test_scales_of_another_type(self, folder: Path) -> None:
        self.edit(folder, lambda tensors: tensors.update({self.SCALE: tensors[self.SCALE].float()}))
        assert refusal(folder, None) == f"{self.SCALE} has type torch.float32, expected torch.float16"

    def test_weight_of_another_size(self, folder: Path) -> None:
        self.edit(folder, lambda tensors: tensors.update({DENSE: torch.zeros(64, 64, dtype=torch.int8)}))
        assert refusal(folder, None) == f"{DENSE} has shape [64, 64], config.json asks for [64, 32]"

    def test_truncated_file(self, folder: Path) -> None:
        path = folder / self.FILE
        path.write_bytes(path.read_bytes()[:-1])
        assert f"{self.FILE}: not a readable safetensors file" in refusal(folder, None)
