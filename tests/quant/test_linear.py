"""Layers: what they register, what they take over, and that they compile as one graph."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from quant import cpu
from quant.linear import Embedding, Linear
from quant.scheme import HeadScheme, Scheme
from quant.schemes.int4 import Int4
from quant.schemes.int8 import Int8
from quant.schemes.none import Float

SCHEMES: dict[str, HeadScheme] = {
    "none": Float(),
    **{f"int8-{size or 'row'}": Int8(size) for size in Int8.facts.group_sizes},
    **{f"int4-{size or 'row'}": Int4(size) for size in Int4.facts.group_sizes},
}
every_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


@pytest.fixture(params=[*cpu.kernels().supported()[-1:], "torch"])
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(cpu.CHOICE, request.param)
    return str(request.param)


@pytest.fixture
def compiler() -> Iterator[Callable[..., Callable[[Tensor], Tensor]]]:
    """torch.compile, whose caches are empty before and after."""
    torch.compiler.reset()
    yield torch.compile
    torch.compiler.reset()


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(scheme: Scheme, weight: Tensor, bias: Tensor) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], scheme, bias.dtype)
    layer.assign(scheme.quantize(weight))
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def test_a_layer_registers_what_its_scheme_stores() -> None:
    assert dict(Linear(3, 5, Float(), torch.float32).named_parameters()).keys() == {"weight", "bias"}
    layer = Linear(3, 5, Int8(), torch.float32)
    shapes = {name: (tuple(p.shape), p.dtype) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight": ((5, 3), torch.int8),
        "weight_scale": ((5,), torch.float32),
        "bias": ((5,), torch.float32),
    }
    assert not layer.weight.requires_grad


@every_scheme
def test_a_layer_on_meta_takes_a_stored_weight(scheme: Scheme) -> None:
    with torch.device("meta"):
        layer = Linear(128, 20, scheme, torch.float32)
    assert {name: (tuple(p.shape), p.dtype) for name, p in layer.named_parameters() if name != "bias"} == dict(
        scheme.tensors(20, 128)
    )
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer.assign(scheme.quantize(drawn(0, 20, 128)))
    layer.bias = nn.Parameter(torch.zeros(20))
    assert {p.device.type for p in layer.parameters()} == {"cpu"}
    assert layer(drawn(1, 3, 128)).shape == (3, 20)


@every_scheme
def test_a_layer_is_its_schemes_product(scheme: Scheme, variant: str) -> None:
    weight, bias, x = drawn(0, 21, 128), drawn(1, 21), drawn(2, 2, 3, 128)
    layer = layer_of(scheme, weight, bias)
    assert not any(p.requires_grad for p in layer.parameters())
    expected = x @ scheme.dequantize(scheme.quantize(weight)).t() + bias
    assert layer(x).dtype == torch.float32
    assert (layer(x) - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "none"])
def test_a_layer_of_halves_takes_and_gives_halves(name: str, dtype: torch.dtype, variant: str) -> None:
    weight, bias, x = drawn(0, 21, 128), drawn(1, 21).to(dtype), drawn(2, 3, 128).to(dtype)
    out = layer_of(SCHEMES[name], weight, bias)(x)
    assert out.dtype == dtype
    assert torch.equal(out, layer_of(SCHEMES[name], weight, bias.float())(x.float()).to(dtype))


@every_scheme
def test_an_embedding_gives_its_rows_and_their_products(scheme: HeadScheme, variant: str) -> None:
    if isinstance(scheme, Int4) and variant == "torch":
        pytest.skip("torch's int4 weights are not readable by row")
    weight = drawn(0, 37, 128 if isinstance(scheme, Int4) or scheme.group_size else 41)
    embedding = Embedding(37, weight.shape[1], scheme, torch.float32)
    stored = scheme.quantize(weight)
    embedding.assign(stored)
    for ids in (torch.tensor([[0, 36, 15], [16, 17, 0]]), torch.tensor([35]), torch.tensor(1), torch.empty(0).long()):
        assert torch.equal(embedding(ids), scheme.dequantize(stored)[ids])
    hidden = drawn(1, 2, 3, weight.shape[1])
    expected = hidden @ scheme.dequantize(stored).t()
    logits = embedding.logits(hidden)
    assert (logits.shape, logits.dtype) == ((2, 3, 37), torch.float32)
    assert (logits - expected).norm() <= 0.02 * expected.norm()


def test_an_embedding_of_halves_gives_halves_and_logits_in_float(variant: str) -> None:
    embedding = Embedding(37, 48, Int8(), torch.float16)
    embedding.assign(Int8().quantize(drawn(0, 37, 48)))
    hidden = embedding(torch.arange(5))
    assert hidden.dtype == torch.float16
    assert embedding.logits(hidden).dtype == torch.float32


@pytest.mark.parametrize("name", ["none", "int8-row", "int8-32", "int4-row", "int4-32"])
def test_a_layer_compiles_as_one_graph(name: str, compiler: Callable[..., Callable[[Tensor], Tensor]]) -> None:
    layer = layer_of(SCHEMES[name], drawn(0, 21, 128), drawn(1, 21))

    def doubled(x: Tensor) -> Tensor:
        out: Tensor = layer(x * 0.5) * 2
        return out

    compiled = compiler(doubled, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for num_rows in (3, 20):
            x = drawn(2, num_rows, 128)
            assert torch.equal(compiled(x), doubled(x))
