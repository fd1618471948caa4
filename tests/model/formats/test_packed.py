"""Packed folders against the libraries that wrote them: the same numbers, kept bit for bit where a scheme has them."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.attention import DenseAttention, visible
from model.checkpoint import converted, entries, fill
from model.config import CheckpointError, Config
from model.families import family_of
from model.network import Network
from model.parallel import Ranks
from model.preferred import told
from model.rank_slice import RankSlice
from model.sharding import Slice, cuts_of
from model.weights import Weights
from quant.registry import build
from tests.model.formats.packed import NAMES, folder_of, golden, weights_of

TOLERANCE = 1e-4
QKV = "transformer.layers.0.attention.query_key_value.weight"
DENSE = "transformer.layers.0.attention.dense.weight"
DOWN = "transformer.layers.0.mlp.dense_4h_to_h.weight"
SMALLER = "no scheme here has those numbers, --quant int4 takes half the memory"
LEFT_OUT = "; the folder's quantization of activations is left out"
TOLD = {
    "ao_int8": "torchao: kept as int8",
    "ao_int8_dynamic": f"torchao: kept as int8{LEFT_OUT}",
    "ao_int8_g32": "torchao: kept as int8 in groups of 32",
    "ao_intx4": "torchao: kept as int4 in groups of 32",
    "awq_g128": "AWQ: 4-bit codes with zeros converted to int8; " + SMALLER,
    "awq_g32": "AWQ: 4-bit codes with zeros converted to int8; " + SMALLER,
    "awq_symmetric": "AWQ: kept as int4 in groups of 64",
    "bnb_bert": "bitsandbytes: kept as nf4",
    "bnb_fp4": "bitsandbytes: FP4 converted to int8; " + SMALLER,
    "bnb_int8": "bitsandbytes: kept as int8",
    "bnb_nf4": "bitsandbytes: kept as nf4",
    "bnb_nf4_nested": "bitsandbytes: NF4 converted to int8; " + SMALLER,  # one matrix has rows of 96 numbers
    "ct_fp8": "compressed-tensors: FP8 converted to int8; " + SMALLER + LEFT_OUT,
    "ct_fp8_static": "compressed-tensors: FP8 converted to int8; " + SMALLER + LEFT_OUT,
    "ct_w4a16_asymmetric": "compressed-tensors: 4-bit codes converted to int8; " + SMALLER,
    "ct_w4a16_channel": "compressed-tensors: kept as int4",
    "ct_w4a16_g128": "compressed-tensors: kept as int4 in groups of 128",
    "ct_w4a16_g32": "compressed-tensors: kept as int4 in groups of 32",
    "ct_w4a16_g64": "compressed-tensors: kept as int4 in groups of 64",
    "ct_w8a16_channel": "compressed-tensors: kept as int8",
    "ct_w8a16_g32": "compressed-tensors: kept as int8 in groups of 32",
    "ct_w8a8": f"compressed-tensors: kept as int8{LEFT_OUT}",
    "ct_w8a8_asymmetric": "compressed-tensors: 8-bit codes converted to int8; " + SMALLER + LEFT_OUT,
    "ct_w8a8_static": f"compressed-tensors: kept as int8{LEFT_OUT}",
    "gptq_8bit_act_order": "GPTQ: 8-bit codes in act-order converted to int8; " + SMALLER,
    "gptq_8bit_rows": "GPTQ: kept as int8",
    "gptq_act_order": "GPTQ: 4-bit codes in act-order converted to int8; " + SMALLER,
    "gptq_asymmetric": "GPTQ: 4-bit codes converted to int8; " + SMALLER,
    "gptq_g128": "GPTQ: kept as int4 in groups of 128",
    "gptq_g32": "GPTQ: kept as int4 in groups of 32",
    "gptq_rows": "GPTQ: kept as int4",
    "gptq_v2_asymmetric": "GPTQ: 4-bit codes converted to int8; " + SMALLER,
    "gptq_v2_g32": "GPTQ: kept as int4 in groups of 32",
}
KEPT = [name for name, line in TOLD.items() if "kept" in line]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return folder_of(request.param, tmp_path)


def network(folder: Path, weights: Weights, scheme: str | None = None) -> Network:
    """The network of a folder, as it is loaded."""
    config = Config.read(folder)
    a = family_of(config).architecture(config)
    storage = weights.chosen(folder, scheme, None, None)
    with torch.device("meta"):
        plain = Network(a)
        model = Network(a, *((storage.schemes(torch.float32, "cpu")[0], torch.float32) if scheme != "none" else ()))
    weights.check(entries(plain))
    fill(model, weights, torch.float32, torch.device("cpu"))
    return model.eval()


@torch.inference_mode()
def logprobs(model: Network, ids: Tensor) -> Tensor:
    count = len(ids)
    context = count if not model.architecture.causal else 0
    places, blocks = torch.arange(count)[None], torch.zeros(1, count, dtype=torch.long)
    hidden = model(ids[None], places, blocks, DenseAttention(visible(count, torch.tensor([context]))))
    return torch.log_softmax(model.logits(hidden)[0].float(), -1)


def test_every_golden_has_its_line() -> None:
    assert sorted(TOLD) == NAMES


@pytest.mark.parametrize("folder", NAMES, indirect=True)
class TestNumbers:
    def test_log_probabilities(self, folder: Path, request: pytest.FixtureRequest) -> None:
        """In floats, those of the library's own dequantized weights."""
        name = request.node.callspec.params["folder"]
        answer = logprobs(network(folder, weights_of(folder), "none"), golden(name)["token_ids"])
        assert (answer - golden(name)["logprobs"]).abs().max() < TOLERANCE

    def test_dequantized_rows(self, folder: Path, request: pytest.FixtureRequest) -> None:
        """The same bits; of 8-bit rows bitsandbytes multiplies by 1 / 127, which is rounded, where we divide."""
        name = request.node.callspec.params["folder"]
        form = weights_of(folder).format
        assert form is not None
        source = form.opened(folder)
        for module, ends in golden(name, "dequantized.").items():
            outputs = source.entries[f"{module}.weight"][0][0]
            found = source.read(f"{module}.weight", Slice(0, ((0, 1), (outputs - 1, 1))))
            torch.testing.assert_close(found, ends, rtol=2e-7 if name == "bnb_int8" else 0, atol=0)

    def test_what_is_told(self, folder: Path, request: pytest.FixtureRequest) -> None:
        weights = weights_of(folder)
        form = weights.format
        assert form is not None
        line = told(weights.matrices(), weights.chosen(folder, None, None, None), form.name, False, form.note(folder))
        assert line == TOLD[request.node.callspec.params["folder"]]

    def test_parts_of_ranks(self, folder: Path) -> None:
        """Two ranks read what they would cut from the whole; also with parts that begin inside a word."""
        weights = weights_of(folder)
        for name, dim in ((QKV, 0), (DENSE, 1), (DOWN, 1), (DENSE, 0)):
            shape, whole = weights.entries[name][0], weights.read(name)
            for part in (Slice(dim, ((shape[dim] // 2, shape[dim] // 2),)), Slice(dim, ((3, 5), (19, 2)))):
                assert torch.equal(weights.read(name, part), part.of(whole))

    @pytest.mark.parametrize("scheme", ["int8", "int4"])
    def test_conversion_is_that_of_the_floats(self, folder: Path, scheme: str) -> None:
        weights, target = weights_of(folder), build(scheme)
        whole = target.quantize(weights.read(DOWN))
        for leaf, tensor in converted(target, weights, DOWN).items():
            assert torch.equal(tensor, whole[leaf])


@pytest.mark.parametrize("folder", KEPT, indirect=True)
class TestKept:
    def test_stored_numbers_are_the_file_s(self, folder: Path) -> None:
        """Bit for bit, and in the shapes and dtypes of the scheme."""
        weights = weights_of(folder)
        kept = [(own.name, own.form) for own in weights.matrices() if own.form is not None]
        assert len(kept) == 4
        for name, form in kept:
            stored = weights.stored(name)
            outputs, inputs = weights.entries[name][0]
            assert {leaf: (tuple(t.shape), t.dtype) for leaf, t in stored.items()} == form.tensors(outputs, inputs)
            assert torch.equal(form.dequantize(stored), weights.read(name))

    def test_parts_of_ranks_are_cut_as_the_scheme_cuts_its_own(self, folder: Path) -> None:
        weights = weights_of(folder)
        config = Config.read(folder)
        a = family_of(config).architecture(config)
        with torch.device("meta"):
            shapes = {name: tuple(parameter.shape) for name, parameter in Network(a).named_parameters()}
        for name, rank in product((QKV, DOWN), (0, 1)):
            share = RankSlice(Ranks(rank, 2), cuts_of(a), shapes)
            form, whole, part = weights.form(name), weights.stored(name), share.part(name)
            assert form is not None
            if name == DOWN and form.group_size == shapes[name][1]:  # the ranks would cut through the group
                with pytest.raises(CheckpointError, match=r"\A.*a cut of inputs .* goes through a group of 128\Z"):
                    weights.stored(name, part)
                continue
            for leaf, tensor in weights.stored(name, part).items():
                cut = share.stored(name, leaf, form)
                assert torch.equal(tensor, whole[leaf] if cut is None else cut.of(whole[leaf]))

    def test_the_network_as_it_is_served(self, folder: Path, request: pytest.FixtureRequest) -> None:
        """Near the library's numbers: only the activations are rounded here."""
        name = request.node.callspec.params["folder"]
        answer = logprobs(network(folder, weights_of(folder)), golden(name)["token_ids"])
        assert (answer - golden(name)["logprobs"]).abs().max() < 1.0
