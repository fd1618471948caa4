"""Folders of model-parallel ranks, read as one checkpoint."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.config import CheckpointError
from model.families.glm130b import GLM130B_NAMING
from model.sat import sat_folder
from model.sharding import ShardSpec, cuts, shard
from model.weights import Weights

GOLDEN = Path(__file__).parents[1] / "golden"
WIDTH = 64
CUTS = cuts((3 * WIDTH,), 2)
LAYER = "transformer.layers.0."
DENSE = f"{LAYER}attention.dense"


def ranks_path(folder: Path, rank: int) -> Path:
    return folder / "49300" / f"mp_rank_{rank:02}_model_states.pt"


def write(folder: Path, ranks: list[dict[str, Tensor]], **state: object) -> Path:
    (folder / "49300").mkdir(parents=True)
    (folder / "latest").write_text("49300\n")
    for rank, tensors in enumerate(ranks):
        torch.save({"module": tensors, **state}, ranks_path(folder, rank))
    return folder


def golden(size: int) -> list[dict[str, Tensor]]:
    """Ranks cut by the rules of GLM-130B's own tools, see golden/make_glm130b_sat.py."""
    tensors = load_file(GOLDEN / "glm130b_sat_shards.safetensors")
    prefixes = [f"mp{size}.{rank}." for rank in range(size)]
    return [{k.removeprefix(p): t for k, t in tensors.items() if k.startswith(p)} for p in prefixes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint", golden(2), iteration=49300)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        Weights(folder, [GLM130B_NAMING], CUTS)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_are_merged_to_the_weights_they_were_cut_from(size: int, tmp_path: Path) -> None:
    whole = load_file(GOLDEN / "glm130b_sat.safetensors")
    whole = {k.removeprefix("weights."): t for k, t in whole.items() if k.startswith("weights.")}
    whole = {k.replace("transformer.word", "word"): t for k, t in whole.items() if not k.endswith("inv_freq")}
    weights = Weights(write(tmp_path / "checkpoint", golden(size)), [GLM130B_NAMING], CUTS)
    weights.check({name: (tuple(tensor.shape), None) for name, tensor in whole.items()})
    for name, tensor in whole.items():
        assert torch.equal(weights.read(name).float(), tensor), name


def test_one_rank_needs_no_cuts(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", golden(2)[:1])
    assert Weights(folder, [GLM130B_NAMING]).read("word_embeddings.weight").shape == (60, WIDTH)


def test_several_ranks_need_cuts(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="49300: of 2 ranks, which cannot be merged here"):
        Weights(folder, [GLM130B_NAMING])


@pytest.mark.parametrize("tracker", ["latest", "latest_checkpointed_iteration.txt"])
@pytest.mark.parametrize("name", ["49300", "release", "global_step100"])
def test_the_iteration_is_the_one_that_is_named(folder: Path, tracker: str, name: str) -> None:
    (folder / "latest").unlink()
    (folder / "49300").rename(folder / name)
    (folder / "1").mkdir()
    (folder / tracker).write_text(name)
    assert Weights(folder, [GLM130B_NAMING], CUTS).listing == folder / name


def test_bare_tensors_without_module(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", golden(2))
    for rank, tensors in enumerate(golden(2)):
        torch.save(tensors, ranks_path(folder, rank))
    assert "word_embeddings.weight" in Weights(folder, [GLM130B_NAMING], CUTS).entries


def test_the_state_of_training_beside_the_weights_is_left_alone(tmp_path: Path) -> None:
    state = {"np_rng_state": np.random.get_state(), "torch_rng_state": torch.get_rng_state(), "optimizer": None}
    folder = write(tmp_path / "checkpoint", golden(2), **state, names={"a"}, iteration=49300, mp_world_size=2)
    assert "word_embeddings.weight" in Weights(folder, [GLM130B_NAMING], CUTS).entries


class TestRefusal:
    @pytest.mark.parametrize("name", ["", "..", "../checkpoint", "nothing", "latest"])
    def test_an_iteration_that_is_not_there(self, folder: Path, name: str) -> None:
        (folder / "latest").write_text(name)
        assert refusal(folder) == f"{folder / 'latest'}: names {name!r}, which is not a folder beside it"

    def test_two_iterations(self, folder: Path) -> None:
        (folder / "latest_checkpointed_iteration.txt").write_text("1")
        message = "latest and latest_checkpointed_iteration.txt name different iterations"
        assert refusal(folder) == f"{folder}/{message}"

    @pytest.mark.parametrize("field", ["iteration", "global_steps"])
    def test_ranks_of_different_iterations(self, tmp_path: Path, field: str) -> None:
        folder = write(tmp_path / "checkpoint", golden(2), **{field: 49300})
        path = ranks_path(folder, 1)
        torch.save({"module": golden(2)[1], field: 49200}, path)
        assert refusal(folder) == f"{path}: {field} 49200, mp_rank_00_model_states.pt has 49300"

    def test_no_ranks(self, folder: Path) -> None:
        shutil.rmtree(folder / "49300")
        (folder / "49300").mkdir()
        assert refusal(folder) == f"{ranks_path(folder, 0)}: no such file"

    def test_a_missing_rank(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "checkpoint", golden(4))
        ranks_path(folder, 2).unlink()
        assert refusal(folder) == f"{ranks_path(folder, 2)}: no such file"

    def test_the_last_rank_missing(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "checkpoint", golden(4), mp_world_size=4)
        ranks_path(folder, 3).unlink()
        assert refusal(folder) == f"{folder / '49300'}: written by 4 ranks, there are files of 3"

    def test_ranks_of_contradictory_shapes(self, folder: Path) -> None:
        tensors = golden(2)[1]
        tensors[f"{DENSE}.weight"] = torch.zeros(WIDTH, 16).half()
        torch.save({"module": tensors, "iteration": 49300}, ranks_path(folder, 1))
        shapes = f"{DENSE}.weight is [64, 16] torch.float16, in mp_rank_00_model_states.pt [64, 32] torch.float16"
        assert refusal(folder) == f"{ranks_path(folder, 1)}: {shapes}"

    def test_ranks_of_different_tensors(self, folder: Path) -> None:
        tensors = golden(2)[1]
        tensors["extra"] = torch.zeros(1)
        torch.save({"module": tensors, "iteration": 49300}, ranks_path(folder, 1))
        assert "does not hold the same tensors as mp_rank_00_model_states.pt: extra" in refusal(folder)

    def test_a_truncated_rank(self, folder: Path) -> None:
        path = ranks_path(folder, 1)
        path.write_bytes(path.read_bytes()[:-100])
        assert f"{path}: not a readable file of torch.save" in refusal(folder)

    def test_rows_that_are_not_whole_sections(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"word_embeddings.weight: 120 along dimension 0"):
            sat_folder(folder, lambda name: ShardSpec(0, (5, 2)) if "word" in name else None)


class TestQuantized:
    """As GLM-130B's tools/convert_tp.py writes it: every rank's part is quantized for itself."""

    def shapes(self) -> dict[str, tuple[int, int]]:
        inner = 4 * WIDTH
        return {
            f"{LAYER}attention.query_key_value": (3 * WIDTH, WIDTH),
            DENSE: (WIDTH, WIDTH),
            f"{LAYER}mlp.dense_h_to_4h": (2 * inner, WIDTH),
            f"{LAYER}mlp.dense_4h_to_h": (WIDTH, inner),
        }

    def folder(self, path: Path, bits: int, size: int) -> tuple[Path, dict[str, Tensor]]:
        """The folder, and the float32 weights that it stands for."""
        generator = torch.Generator().manual_seed(bits + size)
        ranks: list[dict[str, Tensor]] = [{f"{LAYER}input_layernorm.weight": torch.ones(WIDTH)} for _ in range(size)]
        meant = {}
        for name, shape in self.shapes().items():
            weight, cut = torch.randn(shape, generator=generator), CUTS(f"{name}.weight")
            stands = torch.empty(0)
            parts = []
            for rank in range(size):
                part = shard(weight, cut, rank, size)
                scale = (part.abs().amax(1) / (2 ** (bits - 1) - 1)).half()
                codes = (part / scale.float()[:, None]).round()
                parts.append(codes * scale.float()[:, None])
                if bits == 4:
                    codes = codes[:, 0::2] * 16 + codes[:, 1::2] % 16
                    codes = torch.where(codes > 127, codes - 256, codes)
                ranks[rank] |= {f"{name}.weight": codes.to(torch.int8), f"{name}.weight_scale": scale}
            assert cut is not None
            if len(cut.sections) == 2:
                stands = torch.cat([p.chunk(2)[half] for half in range(2) for p in parts])
            else:
                stands = torch.cat(parts, cut.dim)
            meant[name] = stands
        return write(path / "quantized", ranks), meant

    @pytest.mark.parametrize(("bits", "size"), [(8, 1), (8, 2), (4, 1), (4, 2)])
    def test_is_read_exactly(self, tmp_path: Path, bits: int, size: int) -> None:
        folder, meant = self.folder(tmp_path, bits, size)
        weights = Weights(folder, [GLM130B_NAMING], CUTS)
        assert weights.storage is not None
        rows = {8: "int8", 4: "int4 group_size 0"}[bits]
        assert str(weights.storage) == (rows if size == 1 else f"int{bits} group_size 32")
        scheme, _ = weights.storage.schemes(torch.float32, "cuda")
        for name, tensor in meant.items():
            stored = scheme.tensors(*tensor.shape)
            assert {key: weights.entries[f"{name}.{key}"] for key in stored} == stored
            read = {key: weights.read(f"{name}.{key}") for key in stored}
            assert all((tuple(read[key].shape), read[key].dtype) == entry for key, entry in stored.items())
            assert torch.equal(scheme.dequantize(read), tensor), name

    @pytest.mark.parametrize(("bits", "size"), [(8, 4), (4, 4)])  # groups of 16 inputs are not to be had
    def test_what_no_scheme_holds_is_read_as_the_numbers_it_means(self, tmp_path: Path, bits: int, size: int) -> None:
        folder, meant = self.folder(tmp_path, bits, size)
        weights = Weights(folder, [GLM130B_NAMING], CUTS)
        assert weights.storage is None
        for name, tensor in meant.items():
            assert weights.entries[f"{name}.weight"] == (tuple(tensor.shape), torch.float32)
            assert f"{name}.weight_scale" not in weights.entries
            assert torch.equal(weights.read(f"{name}.weight"), tensor), name

    def test_of_no_known_width(self, tmp_path: Path) -> None:
        folder, _ = self.folder(tmp_path, 8, 1)
        path = ranks_path(folder, 0)
        tensors = torch.load(path)["module"]
        tensors[f"{LAYER}attention.query_key_value.weight"] = torch.zeros(3 * WIDTH, 16, dtype=torch.int8)
        torch.save({"module": tensors}, path)
        assert "query_key_value.weight has shape [192, 16], which is neither int8 nor int4" in refusal(folder)
