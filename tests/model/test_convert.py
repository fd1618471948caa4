"""Converted folders: the same network as quantizing while loading, whatever interrupts the conversion."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.attention import DenseAttention, visible
from model.calibration import windows
from model.checkpoint import Description, load
from model.config import CheckpointError, Config
from model.convert import Conversion, Recipe
from model.families import glm
from model.network import Network
from model.parallel import Ranks
from model.safetensors_writer import SafetensorsWriter
from model.storage import Storage
from tests.conftest import WORDS, TinyCheckpoint
from tests.ranks import on_ranks

ROOT = Path(__file__).parents[2]
DENSE = "transformer.layers.1.attention.dense.weight"
INT4 = Recipe(Storage("int4", 32))


@pytest.fixture(scope="module")
def source(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(" ".join(WORDS[n:] + WORDS[:n]).capitalize() + "。红色的船。" for n in range(20)))
    return path


def logits(model: Network) -> Tensor:
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        return model.logits(model(ids, ids, ids * 0, DenseAttention(visible(40, torch.tensor([25])))))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(source: Path, target: Path, recipe: Recipe = INT4) -> str:
    with pytest.raises(ValueError, match=r"\A.+\Z") as error:  # one line
        Conversion(source, target, recipe).run()
    return str(error.value)


class Killed(Exception):
    pass


def kill_after(num_tensors: int) -> Callable[[int], None]:
    """For `run`: raises when so many tensors have been written."""

    class Count(list[int]):
        def __call__(self, num_bytes: int) -> None:
            self.append(num_bytes)
            if len(self) == num_tensors:
                raise Killed

    return Count()


@pytest.mark.parametrize("shard_bytes", [10**9, 50_000])
@pytest.mark.parametrize(
    "storage",
    [
        *(Storage("int8"), Storage("int8", 32), Storage("int4", 32), Storage("int4", 64), Storage("int4", 0)),
        Storage("int4", 32, "int8"),
    ],
    ids=str,
)
def test_a_converted_folder_is_what_loading_makes(
    source: Path, tmp_path: Path, storage: Storage, shard_bytes: int
) -> None:
    done: list[int] = []
    conversion = Conversion(source, tmp_path / "out", Recipe(storage, shard_bytes=shard_bytes))
    facts = conversion.run(done.append)
    assert sum(done) == conversion.num_bytes
    loaded = load(tmp_path / "out")
    expected = load(source, storage.scheme, group_size=storage.group_size, head=storage.head)
    assert loaded.quant == expected.quant == storage.scheme
    assert torch.equal(logits(loaded.model), logits(expected.model))
    assert (facts["shards"] > 3) == (shard_bytes < 10**9)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    total = facts["shards"]
    assert names == {
        "config.json",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer_config.json",
        *(f"model-{number:05}-of-{total:05}.safetensors" for number in range(1, total + 1)),
    }


def test_the_embedding_may_have_groups_of_its_own(source: Path, tmp_path: Path) -> None:
    storage = Storage("int4", 64, "int8", 32)
    facts = Conversion(source, tmp_path / "out", Recipe(storage)).run()
    assert facts["storage"] == {
        **{"quant_method": "glm-infill", "scheme": "int4", "group_size": 64, "head": "int8", "head_group_size": 32}
    }
    assert Storage.read(tmp_path / "out") == storage
    loaded, rows = load(tmp_path / "out"), load(source, "int4", group_size=64, head="int8")
    assert loaded.model.word_embeddings.scheme.group_size == 32
    assert (logits(loaded.model) - logits(rows.model)).norm() < 0.02 * logits(rows.model).norm()


def test_the_folder_says_how_it_is_stored(source: Path, tmp_path: Path) -> None:
    facts = Conversion(source, tmp_path / "out", INT4).run()
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "glm-infill",
        "scheme": "int4",
        "group_size": 32,
        "head": "none",
    }
    assert config == json.loads((source / "config.json").read_text())
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    (file,) = set(index["weight_map"].values())
    tensors = load_file(tmp_path / "out" / file)
    assert tensors.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values()) == facts["bytes"]
    assert facts["bytes_per_quantized_weight"] == 0.5 + 2 / 32


def test_rows_of_int4_are_glm_130b_s_form(source: Path, tmp_path: Path) -> None:
    """130B/quantization/layers.py: scale = max|row| / 7 in float16, element 2i in the high half of byte i."""
    Conversion(source, tmp_path / "out", Recipe(Storage("int4", 0))).run()
    tensors = load_file(tmp_path / "out/model-00001-of-00001.safetensors")
    weight = load_file(source / "model.safetensors")[DENSE].float()
    scale = (weight.abs().amax(1) / 7).half()
    codes = (weight / scale.float()[:, None]).round().clamp(-7, 7).to(torch.int32)
    pairs = ((codes[:, 0::2] << 4) | (codes[:, 1::2] & 15)) & 255
    assert torch.equal(tensors[f"{DENSE}_scale"], scale)
    assert torch.equal(tensors[DENSE].view(torch.uint8).int(), pairs)


def test_sharded_float_folders_are_read_too(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "sharded")
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "sharded/model.safetensors").unlink()
    places = {name: f"{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for place in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == place}, tmp_path / "sharded" / place)
    (tmp_path / "sharded/model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    Conversion(source, tmp_path / "one", INT4).run()
    Conversion(tmp_path / "sharded", tmp_path / "two", INT4).run()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class TestRefusal:
    def test_in_place(self, source: Path) -> None:
        assert refusal(source, source / ".." / source.name).endswith("cannot be converted in place")

    def test_quantized_already(self, source: Path, tmp_path: Path) -> None:
        Conversion(source, tmp_path / "out", INT4).run()
        message = refusal(tmp_path / "out", tmp_path / "again")
        assert message == f"{tmp_path / 'out'}: quantized already, as int4 group_size 32"

    def test_target_with_something_else(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").touch()
        assert refusal(source, tmp_path) == f"{tmp_path}: not empty"

    def test_target_that_is_finished(self, source: Path, tmp_path: Path) -> None:
        Conversion(source, tmp_path / "out", INT4).run()
        before = contents(tmp_path / "out")
        assert refusal(source, tmp_path / "out") == f"{tmp_path / 'out'}: not empty"
        assert contents(tmp_path / "out") == before

    def test_target_that_is_a_file(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out").touch()
        assert refusal(source, tmp_path / "out") == f"{tmp_path / 'out'}: not a folder"

    def test_missing_source(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "nothing", tmp_path / "out") == f"{tmp_path / 'nothing'}: no such folder"

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_weights_that_are_not_finite(self, source: Path, tmp_path: Path, value: float) -> None:
        shutil.copytree(source, tmp_path / "bad")
        tensors = load_file(source / "model.safetensors")
        tensors[DENSE][3, 5] = value
        save_file(tensors, tmp_path / "bad/model.safetensors")
        assert refusal(tmp_path / "bad", tmp_path / "out") == f"{DENSE} holds NaN or infinity"
        assert not (tmp_path / "out/config.json").exists()

    def test_group_that_does_not_divide(self, source: Path, tmp_path: Path) -> None:
        message = refusal(source, tmp_path / "out", Recipe(Storage("int4", 128)))
        name = "transformer.layers.0.attention.query_key_value.weight"
        assert message == f"{name}: group_size 128 does not divide the 64 inputs"

    @pytest.mark.parametrize(
        ("storage", "says"),
        [
            (Storage("none"), "the scheme none quantizes nothing"),
            (Storage("int3"), "no such scheme: int3"),
            (Storage("int4", 48), "group_size must be one of 0, 32, 64, 128"),
            (Storage("int4", 32, "int3"), "no such scheme for the embedding: int3"),
        ],
    )
    def test_what_there_is_not(self, source: Path, tmp_path: Path, storage: Storage, says: str) -> None:
        assert says in refusal(source, tmp_path / "out", Recipe(storage))
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (None, "not a readable UTF-8 text"),
            (b"\xff\xfe\x00", "not a readable UTF-8 text"),
            (b"a\n\nb", "calibration needs a document"),
        ],
    )
    def test_calibration_text(self, source: Path, tmp_path: Path, content: bytes | None, says: str) -> None:
        if content is not None:
            (tmp_path / "text").write_bytes(content)
        message = refusal(source, tmp_path / "out", replace(INT4, calibrate=tmp_path / "text"))
        assert message.startswith(f"{tmp_path / 'text'}: ")
        assert says in message


class TestResuming:
    SMALL = replace(INT4, shard_bytes=30_000)

    @pytest.mark.parametrize("calibrate", [False, True])
    @pytest.mark.parametrize("num_tensors", [1, 9, 20, 27])
    def test_gives_the_same_bytes(
        self, source: Path, tmp_path: Path, text: Path, num_tensors: int, calibrate: bool
    ) -> None:
        recipe = replace(self.SMALL, calibrate=text if calibrate else None, windows=6)
        Conversion(source, tmp_path / "whole", recipe).run()
        with pytest.raises(Killed):
            Conversion(source, tmp_path / "killed", recipe).run(kill_after(num_tensors))
        with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
            load(tmp_path / "killed")
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
        assert kept or num_tensors == 1
        Conversion(source, tmp_path / "killed", recipe).run()
        assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())

    def test_other_arguments_are_refused(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            Conversion(source, tmp_path / "out", self.SMALL).run(kill_after(9))
        before = contents(tmp_path / "out")
        for other in (Recipe(Storage("int8"), shard_bytes=30_000), INT4):
            assert "holds an unfinished conversion" in refusal(source, tmp_path / "out", other)
        assert contents(tmp_path / "out") == before

    def test_another_source_is_refused(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            Conversion(source, tmp_path / "out", self.SMALL).run(kill_after(9))
        shutil.copytree(source, tmp_path / "copy")
        assert "holds an unfinished conversion" in refusal(tmp_path / "copy", tmp_path / "out", self.SMALL)

    def test_a_broken_state_is_refused(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "quantize.json").write_text("{")
        assert "holds an unfinished conversion" in refusal(source, tmp_path)


class TestCalibration:
    @pytest.mark.parametrize("storage", [Storage("int8"), Storage("int4", 32), Storage("int4", 0)], ids=str)
    def test_outputs_are_nearer_to_the_float_network_s(
        self, source: Path, tmp_path: Path, text: Path, storage: Storage
    ) -> None:
        Conversion(source, tmp_path / "plain", Recipe(storage)).run()
        facts = Conversion(source, tmp_path / "calibrated", Recipe(storage, text, windows=40)).run()
        assert facts["calibrated"]
        fresh = windows(text, Description.read(source), 10, seed=9)
        error = dict.fromkeys(("plain", "calibrated"), 0.0)
        model = load(source).model
        for name in error:
            other = load(tmp_path / name).model
            with torch.inference_mode():
                for w in fresh:
                    own = (w.token_ids, w.positions, w.block_positions)
                    attend = DenseAttention(visible(len(w.token_ids), torch.tensor([w.context_len])))
                    batch = [t[None] for t in own]
                    error[name] += float((model(*batch, attend) - other(*batch, attend)).square().sum())
        assert error["calibrated"] < error["plain"] * (1.02 if storage.scheme == "int8" else 0.8)

    def test_windows_are_laid_out_as_the_network_was_trained(self, source: Path, text: Path) -> None:
        description = Description.read(source)
        tokenizer = description.tokenizer
        short = replace(description.architecture, max_sequence_length=22)
        made = windows(text, replace(description, architecture=short), 12)
        for number, window in enumerate(made):
            ids, positions, blocks = (t.tolist() for t in (window.token_ids, window.positions, window.block_positions))
            context, spans = ids[: window.context_len], ids[window.context_len :]
            assert context[0] == tokenizer.cls
            assert positions[: window.context_len] == list(range(window.context_len))
            assert not any(blocks[: window.context_len])
            mask = tokenizer.masks["[MASK]" if number % 2 == 0 else "[gMASK]"]
            assert context[-1] == (tokenizer.eos if number % 2 == 0 else mask)
            places = [position for position, token in enumerate(context) if token == mask]
            starts = [at for at, token in enumerate(spans) if token == tokenizer.sop]
            assert starts[0] == 0
            filled: list[int] = []
            for place, start, end in zip(places, starts, [*starts[1:], len(spans)], strict=True):
                rows = slice(window.context_len + start, window.context_len + end)
                assert set(positions[rows]) == {place}
                assert blocks[rows] == list(range(1, end - start + 1))
                filled += spans[start + 1 : end]
            rest = [token for token in context if token not in (tokenizer.cls, tokenizer.eos, mask)]
            assert len(rest) + len(filled) <= 20 + len(places)  # pieces at the borders may be cut anew

    def test_windows_are_the_same_each_time(self, source: Path, text: Path) -> None:
        made = [windows(text, Description.read(source), 5) for _ in range(2)]
        assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(*made, strict=True))


class TestShard:
    TENSORS = {  # noqa: RUF012
        "odd": torch.arange(3, dtype=torch.int8),
        "b": torch.arange(5.0).half(),
        "c": torch.arange(6.0).view(2, 3),
        "d": torch.arange(3.0).bfloat16(),
        "e": torch.tensor(2.5, dtype=torch.float64),
    }

    def test_reads_back_with_the_library(self, tmp_path: Path) -> None:
        shapes = {name: (tuple(t.shape), t.dtype) for name, t in self.TENSORS.items()}
        with SafetensorsWriter(tmp_path / "a.safetensors", shapes) as shard:
            for name in reversed(self.TENSORS):
                assert not (tmp_path / "a.safetensors").exists()
                shard.write(name, self.TENSORS[name])
        loaded = load_file(tmp_path / "a.safetensors")
        assert loaded.keys() == self.TENSORS.keys()
        assert all(torch.equal(loaded[name], t) and loaded[name].dtype == t.dtype for name, t in self.TENSORS.items())
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    def test_has_no_name_before_it_is_whole(self, tmp_path: Path) -> None:
        with pytest.raises(Killed), SafetensorsWriter(tmp_path / "a.safetensors", {"x": ((2,), torch.int8)}):
            raise Killed
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors.part"]


MEASURE = """
import resource, sys
from pathlib import Path
from model.checkpoint import Description, load
from model.convert import Conversion, Recipe
from model.families import glm
from model.storage import Storage

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

tiny, source, target = map(Path, sys.argv[1:])
Conversion(tiny, target / "tiny", Recipe(Storage("int4", 32))).run()  # what importing and first calls take
load(target / "tiny")
peaks = [peak()]
Conversion(source, target / "big", Recipe(Storage("int4", 32))).run()
peaks.append(peak())
load(target / "big")
peaks.append(peak())
load(source, "int4")
peaks.append(peak())
print(*(b - a for a, b in zip(peaks, peaks[1:])))
"""


def test_memory_is_that_of_one_tensor(tiny_checkpoint: TinyCheckpoint, source: Path, tmp_path: Path) -> None:
    big = tiny_checkpoint(num_layers=1)
    sizes = {"num_layers": 8, "hidden_size": 512, "num_attention_heads": 8}
    config = json.loads((big / "config.json").read_text()) | sizes
    (big / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Network(glm.FAMILY.architecture(Config.read(big)))
    parameters = dict(model.named_parameters())
    shapes = {name: (tuple(p.shape), torch.float16) for name, p in parameters.items()}
    noise = torch.randn(4 * 512 * 512, generator=torch.Generator().manual_seed(0)).half()
    with SafetensorsWriter(big / "model.safetensors", shapes) as shard:
        for name, parameter in parameters.items():
            shard.write(name, noise[: parameter.numel()].view(parameter.shape))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, source, big, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    converting, loading, quantizing = (int(number) / 1e6 for number in done.stdout.split())
    tensor, stored = 2.1, 0.5625 * 8 * 12 * 512 * 512 / 1e6  # MB; the float network has 50
    assert converting < tensor + 0.5625 / 2 * tensor + 24
    assert converting + loading < stored + 24
    assert converting + loading + quantizing < stored + tensor + 40


@pytest.fixture(scope="module")
def wide(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint(hidden_size=128, num_attention_heads=4)


class TestRanks:
    """Folders cut for ranks, each with files of its own."""

    @pytest.mark.parametrize(
        "storage", [Storage("int8", 0, "int8"), Storage("int8", 32), Storage("int4", 32), Storage("int4", 0)], ids=str
    )
    @pytest.mark.parametrize("cut", [1, 2, 4])
    def test_any_number_of_ranks_reads_what_was_cut_for_any(
        self, wide: Path, tmp_path: Path, storage: Storage, cut: int
    ) -> None:
        target = tmp_path / "cut"
        facts = Conversion(wide, target, Recipe(storage, shard_bytes=100_000, tp=cut)).run()
        assert facts["tp"] == cut

        def tensors(folder: Path, quant: Storage | None, ranks: Ranks) -> dict[str, Tensor]:
            how = (None, None, None) if quant is None else (quant.scheme, quant.group_size, quant.head)
            return dict(load(folder, how[0], "cpu", how[1], how[2], ranks=ranks).model.state_dict())

        for size in (1, 2, 4):
            found = on_ranks(size, lambda ranks: tensors(target, None, ranks))
            expected = on_ranks(size, lambda ranks: tensors(wide, storage, ranks))
            for own, wanted in zip(found, expected, strict=True):
                assert all(torch.equal(own[name], tensor) for name, tensor in wanted.items())

    def test_a_rank_reads_no_other_rank_s_file(self, wide: Path, tmp_path: Path) -> None:
        target = tmp_path / "cut"
        Conversion(wide, target, Recipe(Storage("int4", 32), tp=2)).run()
        sizes = [sum(p.stat().st_size for p in (target / f"rank-{r}-of-2").glob("*.safetensors")) for r in range(2)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
        (path,) = (target / "rank-1-of-2").glob("*.safetensors")
        header = int.from_bytes(path.read_bytes()[:8], "little") + 8
        with path.open("r+b") as file:
            file.seek(header)
            file.write(b"\xff" * (path.stat().st_size - header))  # every float16 in it is NaN
        load(target, ranks=Ranks(0, 2))
        with pytest.raises(CheckpointError, match="NaN"):
            load(target, ranks=Ranks(1, 2))

    def test_goes_on_after_a_kill(self, wide: Path, tmp_path: Path, text: Path) -> None:
        recipe = Recipe(Storage("int4", 32), text, 4, 100_000, tp=2)
        Conversion(wide, tmp_path / "once", recipe).run()
        with pytest.raises(Killed):
            Conversion(wide, tmp_path / "twice", recipe).run(kill_after(9))
        Conversion(wide, tmp_path / "twice", recipe).run()
        for rank in range(2):
            name = f"rank-{rank}-of-2"
            assert contents(tmp_path / "twice" / name) == contents(tmp_path / "once" / name)

    def test_what_ranks_do_not_divide_is_refused(self, wide: Path, tmp_path: Path) -> None:
        assert refusal(wide, tmp_path / "a", Recipe(Storage("int4", 32), tp=3)) == (
            "num_attention_heads 4 is not divisible by 3 ranks"
        )
        assert "group_size 64 does not divide the 32 inputs of a rank's share, one of 4" in refusal(
            wide, tmp_path / "b", Recipe(Storage("int4", 64), tp=4)
        )
