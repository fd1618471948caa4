"""Checkpoint files of every layout: read exactly, or refused in one line."""

import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import CheckpointError
from model.families.bert import BERT_NAMING
from model.families.chatglm import CHATGLM_NAMING
from model.families.glm import GLM_NAMING
from model.families.glm4 import GLM4_HF_NAMING
from model.naming import Naming
from model.pickle_file import PickleFile
from model.sharding import Slice
from model.storage import Storage
from model.weights import Weights

Tensors = dict[str, Tensor]
GOLDEN = Path(__file__).parents[1] / "golden"
DENSE = "transformer.layers.0.attention.dense.weight"


def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "word_embeddings.weight": (24, 8),
        DENSE: (8, 8),
        "transformer.layers.0.attention.dense.bias": (8,),
        "transformer.final_layernorm.weight": (8,),
    }
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def save_safetensors(folder: Path, content: Tensors) -> None:
    save_file(content, folder / "model.safetensors")


def save_pickle(folder: Path, content: Tensors) -> None:
    torch.save(content, folder / "pytorch_model.bin")


def save_module(folder: Path, content: Tensors) -> None:
    torch.save({"module": content, "iteration": 3}, folder / "pytorch_model.bin")


def save_old_pickle(folder: Path, content: Tensors) -> None:
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def save_shards(folder: Path, content: Tensors) -> None:
    names = list(content)
    index: dict[str, str] = {}
    for number, half in enumerate((names[:2], names[2:]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: content[name] for name in half}, folder / file)
        index |= dict.fromkeys(half, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def save_ranks(folder: Path, content: Tensors) -> None:
    (folder / "latest").write_text("7")
    (folder / "7").mkdir()
    torch.save({"module": content}, folder / "7" / "mp_rank_00_model_states.pt")


LAYOUTS = [save_safetensors, save_pickle, save_module, save_old_pickle, save_shards, save_ranks]


def refusal(folder: Path, *namings: Naming, wanted: Tensors | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        check(Weights(folder, namings), tensors() if wanted is None else wanted)
    message = str(error.value)
    assert "\n" not in message
    return message


def check(weights: Weights, wanted: Tensors) -> None:
    weights.check({name: (tuple(tensor.shape), None) for name, tensor in wanted.items()})


@pytest.mark.parametrize("save", LAYOUTS)
class TestEveryLayout:
    def test_is_read_exactly(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        save(tmp_path, tensors())
        weights = Weights(tmp_path)
        check(weights, tensors())
        assert weights.storage is None
        assert all(path.is_file() for path in weights.files)
        for _ in range(2):  # what was let go of is there again
            for name, tensor in tensors().items():
                assert torch.equal(weights.read(name), tensor), name

    def test_missing_tensor(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        content = tensors()
        del content[DENSE]
        save(tmp_path, content)
        assert refusal(tmp_path).endswith(f" lacks {DENSE}")

    def test_left_over_tensor(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        save(tmp_path, tensors() | {"extra": torch.zeros(1)})
        assert refusal(tmp_path, GLM_NAMING).endswith(" has unknown extra")

    def test_wrong_shape(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        save(tmp_path, tensors() | {DENSE: torch.zeros(8, 4)})
        assert refusal(tmp_path) == f"{DENSE} has shape [8, 4], config.json asks for [8, 8]"

    def test_config_of_another_number_of_layers(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        save(tmp_path, tensors() | {DENSE.replace("0", "2"): torch.zeros(8, 8)})
        assert refusal(tmp_path).endswith(" has 3 layers, config.json asks for 1")

    def test_weights_that_are_not_finite(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        save(tmp_path, tensors() | {DENSE: torch.full((8, 8), torch.inf)})
        with pytest.raises(CheckpointError, match=f"^{DENSE} holds NaN or infinity$"):
            Weights(tmp_path).read(DENSE)


def test_a_view_of_a_larger_tensor_is_read_as_it_is(tmp_path: Path) -> None:
    whole = torch.arange(64.0).reshape(8, 8)
    save_pickle(tmp_path, {"turned": whole.t(), "row": whole[3]})
    weights = Weights(tmp_path)
    assert torch.equal(weights.read("turned"), whole.t())
    assert torch.equal(weights.read("row"), whole[3])


def test_what_is_read_of_a_pickle_can_be_written_to(tmp_path: Path) -> None:
    save_pickle(tmp_path, tensors())
    weights = Weights(tmp_path)
    weights.read(DENSE).zero_()
    assert torch.equal(weights.read(DENSE), tensors()[DENSE])


def test_pages_that_were_read_do_not_count_as_memory(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not say what is mapped")

    def mapped() -> int:
        return int(status.read_text().split("RssFile:")[1].split()[0])  # KB

    size = 16 * 2**20
    save_pickle(tmp_path, {f"{i}": torch.ones(size // 4) for i in range(4)})
    file = PickleFile(tmp_path / "pytorch_model.bin")
    before = mapped()
    for name in file.entries:
        file.read(name)
    assert mapped() - before < size // 1024


class TestPickle:
    def test_code_is_not_run(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save({"a": torch.zeros(1), "b": Attack()}, tmp_path / "pytorch_model.bin")
        says = f"holds more than tensors: {os.mkdir.__module__}.mkdir, which is not loaded"
        assert refusal(tmp_path) == f"{tmp_path / 'pytorch_model.bin'}: {says}"
        assert not (tmp_path / "ran").exists()

    def test_code_in_a_file_that_is_only_a_pickle(self, tmp_path: Path) -> None:
        class Attack:
            def __reduce__(self) -> tuple[object, tuple[str]]:
                return os.mkdir, (str(tmp_path / "ran"),)

        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Attack()}, protocol=2))
        says = f"holds more than tensors: {os.mkdir.__module__}.mkdir, which is not loaded"
        assert refusal(tmp_path) == f"{tmp_path / 'pytorch_model.bin'}: {says}"
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("save", [save_pickle, save_old_pickle])
    def test_damaged_files(self, tmp_path: Path, save: Callable[[Path, Tensors], None]) -> None:
        save(tmp_path, tensors())
        path = tmp_path / "pytorch_model.bin"
        whole = path.read_bytes()
        lengths = [0, 2, 4, 100, len(whole) // 2, len(whole) - 1]
        for length in lengths:
            path.write_bytes(whole[:length])
            assert str(path) in refusal(tmp_path)

    def test_random_damage_is_never_another_error(self, tmp_path: Path) -> None:
        draw = random.Random(0)
        for save in (save_pickle, save_old_pickle):
            save(tmp_path, tensors())
            path = tmp_path / "pytorch_model.bin"
            whole = path.read_bytes()
            for _ in range(100):
                damaged = bytearray(whole)
                for _ in range(draw.randint(1, 8)):
                    damaged[draw.randrange(len(damaged) // 2)] = draw.randrange(256)
                path.write_bytes(damaged)
                with suppress(CheckpointError):
                    check(Weights(tmp_path), tensors())

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            ([torch.zeros(1)], "holds a list, not tensors by name"),
            ({"module": 3}, "module is a int, not tensors by name"),
            ({"a": 3}, "a is not a tensor of plain numbers"),
            ({3: torch.zeros(1)}, "3 is not a tensor of plain numbers"),
            ({"a": torch.zeros(2, 2).to_sparse()}, "a is not a tensor of plain numbers"),
            ({"a": torch.zeros(2, device="meta")}, "a is not a tensor of plain numbers"),
        ],
    )
    def test_what_is_no_tensor(self, tmp_path: Path, content: object, says: str) -> None:
        torch.save(content, tmp_path / "pytorch_model.bin")
        assert refusal(tmp_path) == f"{tmp_path / 'pytorch_model.bin'}: {says}"


class TestSafetensors:
    def write(self, folder: Path, header: Mapping[str, object], data: bytes) -> None:
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)

    @pytest.mark.parametrize(
        ("first", "second", "size"),
        [
            ((0, 8), (4, 12), 12),
            ((0, 8), (0, 8), 8),
            ((0, 8), (12, 20), 20),
            ((0, 8), (8, 16), 15),
            ((0, 8), (8, 12), 12),
        ],
        ids=["overlapping", "the same", "gap", "truncated", "too few bytes"],
    )
    def test_offsets_that_do_not_fit(
        self, tmp_path: Path, first: tuple[int, int], second: tuple[int, int], size: int
    ) -> None:
        header = {
            name: {"dtype": "F32", "shape": [2], "data_offsets": list(offsets)}
            for name, offsets in (("a", first), ("b", second))
        }
        self.write(tmp_path, header, bytes(size))
        assert refusal(tmp_path).startswith(f"{tmp_path / 'model.safetensors'}: not a readable safetensors file (")


class TestIndex:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        save_shards(tmp_path, tensors())
        return tmp_path

    def edit(self, folder: Path, change: Callable[[dict[str, object]], object]) -> None:
        path = folder / "pytorch_model.bin.index.json"
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))

    def test_a_missing_shard(self, folder: Path) -> None:
        path = folder / "pytorch_model-00002-of-00002.bin"
        path.unlink()
        index = folder / "pytorch_model.bin.index.json"
        assert refusal(folder) == f"{index}: names {path.name}, not in the folder"

    @pytest.mark.parametrize("file", ["../a.bin", "/a.bin", "a/b.bin", "..", ".", "", 3, None])
    def test_a_file_outside_the_folder(self, folder: Path, file: object) -> None:
        self.edit(folder, lambda index: index.update(a=file))
        assert refusal(folder).startswith(f"{folder / 'pytorch_model.bin.index.json'}: not an index of bin files")

    def test_a_tensor_that_is_not_listed(self, folder: Path) -> None:
        self.edit(folder, lambda index: index.pop(DENSE))
        says = f"pytorch_model-00001-of-00002.bin has {DENSE}, which pytorch_model.bin.index.json does not place there"
        assert refusal(folder) == says

    def test_a_tensor_that_is_not_there(self, folder: Path) -> None:
        self.edit(folder, lambda index: index.update(a="pytorch_model-00001-of-00002.bin"))
        says = "pytorch_model-00001-of-00002.bin lacks a, which pytorch_model.bin.index.json places there"
        assert refusal(folder) == says


class TestCopies:
    WANTED: ClassVar = {"word_embeddings.weight": torch.zeros(24, 8)}

    def save(self, folder: Path, head: Tensor, name: str = "lm_head.weight") -> Path:
        save_pickle(folder, {"transformer.word_embeddings.weight": tensors()["word_embeddings.weight"], name: head})
        return folder

    def test_an_equal_head_is_left_out(self, tmp_path: Path) -> None:
        self.save(tmp_path, tensors()["word_embeddings.weight"])
        check(Weights(tmp_path, [CHATGLM_NAMING]), self.WANTED)

    def test_a_head_of_its_own_is_read_where_it_is_wanted(self, tmp_path: Path) -> None:
        self.save(tmp_path, torch.ones(24, 8).half())
        check(Weights(tmp_path, [CHATGLM_NAMING]), self.WANTED | {"lm_head.weight": torch.zeros(24, 8)})

    @pytest.mark.parametrize("shape", [(24, 8), (25, 8)])
    def test_a_head_that_differs(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        self.save(tmp_path, torch.ones(shape).half())
        says = "lm_head.weight differs from word_embeddings.weight, which it is a copy of in this network"
        assert refusal(tmp_path, CHATGLM_NAMING, wanted=self.WANTED) == says

    def test_a_decoder_of_bert_that_differs(self, tmp_path: Path) -> None:
        content = load_file(GOLDEN / "bert.safetensors")
        content = {k.removeprefix("weights."): t for k, t in content.items() if k.startswith("weights.")}
        content["cls.predictions.decoder.bias"] += 1
        save_safetensors(tmp_path, content)
        weights = Weights(tmp_path, [BERT_NAMING])
        wanted = {k: torch.empty(e[0]) for k, e in weights.entries.items() if "decoder" not in k}
        assert refusal(tmp_path, BERT_NAMING, wanted=wanted).startswith(
            "mlm_head.decoder.bias differs from mlm_head.bias"
        )


class TestParts:
    @pytest.mark.parametrize(("file", "naming"), [("bert", BERT_NAMING), ("glm4", GLM4_HF_NAMING)])
    def test_queries_keys_and_values_are_joined(self, tmp_path: Path, file: str, naming: Naming) -> None:
        content = load_file(GOLDEN / f"{file}.safetensors")
        content = {k.removeprefix("weights."): t for k, t in content.items() if k.startswith("weights.")}
        save_safetensors(tmp_path, content)
        weights = Weights(tmp_path, [naming])
        for name in ("query_key_value.weight", "query_key_value.bias"):
            canonical = f"transformer.layers.1.attention.{name}"
            joined = torch.cat([content[part] for part in naming.published(canonical)])
            assert weights.entries[canonical] == (tuple(joined.shape), joined.dtype)
            assert torch.equal(weights.read(canonical), joined)

    def test_parts_of_different_width(self, tmp_path: Path) -> None:
        path = "model.layers.0.self_attn"
        save_pickle(tmp_path, {f"{path}.{part}_proj.weight": torch.zeros(8, 8 + (part == "k")) for part in "qkv"})
        assert f"{path}.k_proj.weight is [8, 9] torch.float32" in refusal(tmp_path, GLM4_HF_NAMING)

    def test_a_network_without_a_pooler_ignores_it(self, tmp_path: Path) -> None:
        save_pickle(tmp_path, {"cls.predictions.bias": torch.zeros(4), "bert.pooler.dense.weight": torch.zeros(4, 4)})
        check(Weights(tmp_path, [BERT_NAMING]), {"mlm_head.bias": torch.zeros(4)})


class TestPublishedQuantization:
    """ChatGLM-6B's int4 and int8 files, as its quantization.py makes them."""

    def folder(self, path: Path, bits: int, **config: object) -> Path:
        golden = load_file(GOLDEN / "glm130b_sat_quantized.safetensors")
        save_pickle(path, {k.removeprefix(f"int{bits}."): t for k, t in golden.items() if k.startswith(f"int{bits}.")})
        (path / "config.json").write_text(json.dumps({"quantization_bit": bits, **config}))
        return path

    @pytest.mark.parametrize("bits", [4, 8])
    def test_is_read_as_stored_by_our_scheme(self, tmp_path: Path, bits: int) -> None:
        original = load_file(GOLDEN / "glm130b_sat.safetensors")
        weights = Weights(self.folder(tmp_path, bits), [CHATGLM_NAMING])
        assert weights.storage == Storage.published(bits, embeddings=False)
        scheme, _ = weights.storage.schemes(torch.float32, "cuda")
        names = [name.removesuffix(".weight_scale") for name in weights.entries if name.endswith("_scale")]
        assert len(names) == 8
        for name in names:
            weight = original[f"weights.{name}.weight"]
            stored = scheme.tensors(*weight.shape)
            assert {key: weights.entries[f"{name}.{key}"] for key in stored} == stored
            read = {key: weights.read(f"{name}.{key}") for key in stored}
            assert {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in read.items()} == stored
            # Half a step, and in int8 up to 127 × half a unit of the scale's last digit.
            error = (scheme.dequantize(read) - weight).abs().amax(1)
            assert bool((error <= read["weight_scale"].float() * 0.57).all())

    def test_the_first_of_two_numbers_is_the_high_nibble(self, tmp_path: Path) -> None:
        name = "transformer.layers.0.attention.dense"
        scale = torch.tensor([0.5, 2]).half()
        packed = torch.tensor([[0x7 << 4 | 0x9], [0x1 << 4 | 0xF]], dtype=torch.uint8).view(torch.int8)
        save_pickle(tmp_path, {f"{name}.weight": packed, f"{name}.weight_scale": scale})
        (tmp_path / "config.json").write_text('{"quantization_bit": 4}')
        weights = Weights(tmp_path)
        assert weights.storage is not None
        scheme, _ = weights.storage.schemes(torch.float32, "cuda")
        read = {key: weights.read(f"{name}.{key}") for key in ("weight", "weight_scale")}
        assert scheme.dequantize(read).tolist() == [[3.5, -3.5], [2, -2]]

    @pytest.mark.parametrize("bits", [4, 8])
    def test_quantized_embeddings(self, tmp_path: Path, bits: int) -> None:
        codes = torch.randint(-7, 8, (6, 64 if bits == 8 else 32), dtype=torch.int8)
        scale = torch.rand(6).half()
        save_pickle(tmp_path, {"word_embeddings.weight": codes, "word_embeddings.weight_scale": scale})
        (tmp_path / "config.json").write_text(json.dumps({"quantization_bit": bits, "quantization_embeddings": True}))
        weights = Weights(tmp_path)
        assert weights.storage is not None
        _, head = weights.storage.schemes(torch.float32, "cuda")
        read = {key: weights.read(f"word_embeddings.{key}") for key in head.tensors(6, 64)}
        assert {key: weights.entries[f"word_embeddings.{key}"] for key in read} == head.tensors(6, 64)
        codes = codes if bits == 8 else torch.stack([codes >> 4, codes << 4 >> 4], -1).flatten(1)
        assert torch.equal(head.dequantize(read), codes.float() * scale.float()[:, None])

    @pytest.mark.parametrize("bits", [2, "4", True, 4.0, [4]])
    def test_another_number_of_bits(self, tmp_path: Path, bits: object) -> None:
        save_pickle(tmp_path, tensors())
        (tmp_path / "config.json").write_text(json.dumps({"quantization_bit": bits}))
        assert refusal(tmp_path) == f"{tmp_path / 'config.json'}: quantization_bit must be 0, 4 or 8, not {bits!r}"

    def test_no_bits_are_none(self, tmp_path: Path) -> None:
        save_pickle(tmp_path, tensors())
        (tmp_path / "config.json").write_text('{"quantization_bit": 0}')
        assert Weights(tmp_path).storage is None

    @pytest.mark.parametrize(
        ("kinds", "joined"),
        [
            ((torch.float16, torch.float16, torch.float32), torch.float32),
            ((torch.float16, torch.bfloat16, torch.float16), torch.float32),
            ((torch.bfloat16, torch.bfloat16, torch.float64), torch.float64),
        ],
    )
    def test_parts_of_several_dtypes_have_the_one_that_holds_all(
        self, tmp_path: Path, kinds: tuple[torch.dtype, ...], joined: torch.dtype
    ) -> None:
        path, name = "model.layers.0.self_attn", "transformer.layers.0.attention.query_key_value.weight"
        parts = [torch.randn(8, 4, generator=torch.Generator().manual_seed(n)).to(kinds[n]) for n in range(3)]
        save_safetensors(tmp_path, {f"{path}.{part}_proj.weight": t for part, t in zip("qkv", parts, strict=True)})
        weights = Weights(tmp_path, [GLM4_HF_NAMING])
        whole = torch.cat([part.to(joined) for part in parts])
        assert weights.entries[name] == ((24, 4), joined)
        assert torch.equal(weights.read(name), whole)
        for cut in (Slice(0, ((2, 3),)), Slice(0, ((4, 8), (17, 2))), Slice(1, ((1, 2),))):
            read = weights.read(name, cut)
            assert read.dtype == joined
            assert torch.equal(read, cut.of(whole))

    def test_parts_of_floats_and_integers(self, tmp_path: Path) -> None:
        path = "model.layers.0.self_attn"
        kinds = {"q": torch.float16, "k": torch.int8, "v": torch.float16}
        save_safetensors(
            tmp_path, {f"{path}.{part}_proj.weight": torch.zeros(8, 8, dtype=kinds[part]) for part in "qkv"}
        )
        assert f"{path}.k_proj.weight is [8, 8] torch.int8" in refusal(tmp_path, GLM4_HF_NAMING)
