"""Attention over cache blocks: the rows a plain loop gives, whatever shares the step and wherever the keys lie."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.architecture import Architecture
from model.attention import DenseAttention, KVCache, PagedAttention, Span, part_b_start, visible
from model.families import glm
from model.network import Network
from quant import cpu
from quant.linear import Linear
from quant.operators.quantize_vectors import quantize_vectors
from quant.registry import build
from quant.scheme import Scheme
from quant.schemes.none import Float
from tests.quant.conftest import running

HEADS, HEAD_DIM = 2, 8
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
DTYPES = [torch.float32, torch.int8]  # of a cache


@dataclass(frozen=True, slots=True)
class Shape:
    """A sequence: tokens of part A, tokens of part B, and in how many rows a step part B comes."""

    context_len: int
    num_part_b: int
    part_b_rows: int

    def __len__(self) -> int:
        return self.context_len + self.num_part_b


shapes = st.builds(Shape, st.integers(1, 40), st.integers(0, 20), st.integers(1, 20))
block_sizes = st.sampled_from([1, 2, 3, 5, 16, 32])
seeds = st.integers(0, 2**31)


def drawn(num_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [rows, heads, head_dim]; some keys stand out, so that a wrong mask shows."""
    q, k, v = (torch.randn(num_rows, HEADS, HEAD_DIM, generator=generator) * s for s in (2, 2, 1))
    return q, k, v


def loop(q: Tensor, k: Tensor, v: Tensor, context_len: int) -> Tensor:
    """One sequence, row by row and head by head, in double precision."""
    out = torch.empty_like(q)
    for row in range(len(q)):
        seen = list(range(context_len)) if row < context_len else list(range(row + 1))
        for head in range(q.shape[1]):
            scores = k[seen, head].double() @ q[row, head].double() / q.shape[2] ** 0.5
            out[row, head] = (torch.softmax(scores, 0) @ v[seen, head].double()).float()
    return out


def kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cache of this dtype gives back of keys or values."""
    if dtype != torch.int8:
        return x
    codes, scales = quantize_vectors(x)
    return codes * scales[..., None]


def empty_cache(num_blocks: int, block_size: int, num_layers: int = 1, dtype: torch.dtype = torch.float32) -> KVCache:
    cache = KVCache(num_layers, num_blocks, block_size, HEADS, HEAD_DIM, dtype, torch.device("cpu"))
    for vectors in (cache.keys, cache.values):  # left over from others
        (vectors.numbers if vectors.scales is None else vectors.scales).fill_(torch.nan)
    return cache


def num_blocks(shape: Shape, block_size: int) -> tuple[int, int]:
    """Blocks of part A, blocks of part B."""
    return -(-shape.context_len // block_size), -(-shape.num_part_b // block_size)


def pieces(shape: Shape, block_size: int, blocks: tuple[int, ...]) -> list[tuple[slice, Span]]:
    """Part A, then part B cut into steps: (rows of the sequence, span). A step holds only blocks in use."""
    context_blocks = num_blocks(shape, block_size)[0]
    result = [
        (
            slice(0, shape.context_len),
            Span(shape.context_len, 0, shape.context_len, blocks[:context_blocks]),
        )
    ]
    for row in range(shape.context_len, len(shape), shape.part_b_rows):
        rows = slice(row, min(len(shape), row + shape.part_b_rows))
        start = part_b_start(shape.context_len, block_size) + row - shape.context_len
        used = -(-(start + rows.stop - rows.start) // block_size)
        result.append((rows, Span(rows.stop - rows.start, start, shape.context_len, blocks[:used])))
    return result


def paged(
    sequences: list[tuple[Shape, tuple[Tensor, Tensor, Tensor]]],
    block_size: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """All sequences together, step by step, over blocks in no order."""
    counts = [sum(num_blocks(shape, block_size)) for shape, _ in sequences]
    order = torch.randperm(sum(counts) + 3, generator=generator).tolist()
    cache = empty_cache(len(order), block_size, dtype=dtype)
    queues, outs = [], []
    for (shape, _), count in zip(sequences, counts, strict=True):
        queues.append(pieces(shape, block_size, tuple(order[:count])))
        order = order[count:]
        outs.append(torch.full((len(shape), HEADS, HEAD_DIM), torch.nan))
    while any(queues):
        step = [(number, *queue.pop(0)) for number, queue in enumerate(queues) if queue]
        q, k, v = (torch.cat([sequences[n][1][i][rows] for n, rows, _ in step]) for i in range(3))
        mixed = PagedAttention(cache, [span for _, _, span in step])(0, q, k, v)
        for (number, rows, span), part in zip(step, mixed.split([span.num_rows for _, _, span in step]), strict=True):
            assert len(part) == span.num_rows
            outs[number][rows] = part
    return outs


@given(st.lists(shapes, min_size=1, max_size=5), block_sizes, st.sampled_from(DTYPES), seeds)
@settings(max_examples=60, deadline=None)
def test_unequal_sequences_in_shared_steps_get_what_a_plain_loop_gives(
    batch: list[Shape], block_size: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    sequences = [(shape, drawn(len(shape), generator)) for shape in batch]
    for (shape, (q, k, v)), ours in zip(sequences, paged(sequences, block_size, generator, dtype), strict=True):
        expected = loop(q, kept(k, dtype), kept(v, dtype), shape.context_len)
        torch.testing.assert_close(ours, expected, **TOLERANCE)


@given(st.lists(shapes, min_size=1, max_size=5), block_sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_a_cache_in_int8_is_near_dense_attention(batch: list[Shape], block_size: int, seed: int) -> None:
    """Keys of size 2 and queries of size 2: scores are off by some hundredths, values by less than max / 254."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [(shape, drawn(len(shape), generator)) for shape in batch]
    for (shape, (q, k, v)), ours in zip(sequences, paged(sequences, block_size, generator, torch.int8), strict=True):
        mask = visible(len(shape), torch.tensor([shape.context_len]))
        (dense,) = DenseAttention(mask)(0, q[None], k[None], v[None])
        assert (ours - dense).abs().max() < 0.1
        assert (ours - dense).norm() < 0.03 * dense.norm()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(30, 50), block_sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_paged_and_dense_attention_agree(context_lens: list[int], num_tokens: int, block_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = [Shape(c, num_tokens - c, 7) for c in context_lens]
    sequences = [(shape, drawn(num_tokens, generator)) for shape in batch]
    q, k, v = (torch.stack([qkv[i] for _, qkv in sequences]) for i in range(3))
    dense = DenseAttention(visible(num_tokens, torch.tensor(context_lens)))(0, q, k, v)
    ours = torch.stack(paged(sequences, block_size, generator))
    torch.testing.assert_close(ours, dense, **TOLERANCE)


@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    block_sizes,
    st.sampled_from(DTYPES),
    seeds,
)
@settings(max_examples=40, deadline=None)
def test_sequences_over_one_shared_part_a_do_not_see_each_other(
    context_len: int, part_b_lens: list[int], block_size: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    context_blocks = -(-context_len // block_size)
    order = torch.randperm(context_blocks + sum(part_b_lens), generator=generator).tolist()
    cache = empty_cache(len(order), block_size, dtype=dtype)
    shared, rest = tuple(order[:context_blocks]), order[context_blocks:]
    part_a = drawn(context_len, generator)
    PagedAttention(cache, [Span(context_len, 0, context_len, shared)])(0, *part_a)
    spans, parts = [], []
    for length in part_b_lens:
        own, rest = rest[: -(-length // block_size)], rest[-(-length // block_size) :]
        start = part_b_start(context_len, block_size)
        spans.append(Span(length, start, context_len, (*shared, *own)))
        parts.append(drawn(length, generator))
    q, k, v = (torch.cat([part[i] for part in parts]) for i in range(3))
    mixed = PagedAttention(cache, spans)(0, q, k, v).split(part_b_lens)
    for part, ours in zip(parts, mixed, strict=True):
        whole = [torch.cat([a, b]) for a, b in zip(part_a, part, strict=True)]
        expected = loop(whole[0], kept(whole[1], dtype), kept(whole[2], dtype), context_len)[context_len:]
        torch.testing.assert_close(ours, expected, **TOLERANCE)


def test_visible_lets_all_rows_see_part_a_and_part_b_see_its_past() -> None:
    assert visible(4, torch.tensor([2, 0])).int().tolist() == [
        [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]],
        [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]],
    ]


@pytest.mark.parametrize(("context_len", "block_size", "start"), [(1, 16, 16), (16, 16, 16), (17, 16, 32), (5, 1, 5)])
def test_part_b_starts_at_the_next_block_border(context_len: int, block_size: int, start: int) -> None:
    assert part_b_start(context_len, block_size) == start


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", [*cpu.kernels().supported()[-1:], "torch"])
def test_rows_of_one_step_are_read_back_as_the_cache_keeps_them(variant: str, dtype: torch.dtype) -> None:
    """Part B in one step, a row at a time, and half and half, with one head of keys for two of queries."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(50, heads, 64, generator=generator) for heads in (4, 2, 2))
    outs = []
    for cuts in ([20], [*range(20, 50)], [20, 35]):
        cache = KVCache(1, 5, 16, 2, 64, dtype, torch.device("cpu"))
        parts = []
        with running(variant):
            for first, stop in zip([0, *cuts], [*cuts, 50], strict=True):
                span = Span(stop - first, first and first + 12, 20, (3, 1, 4, 0))
                rows = slice(first, stop)
                parts.append(PagedAttention(cache, [span])(0, q[rows], k[rows], v[rows]))
        outs.append(torch.cat(parts))
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=0, atol=0 if variant != "torch" else 1e-6)
    shared = (x.repeat_interleave(2, dim=1) for x in (kept(k, dtype), kept(v, dtype)))
    torch.testing.assert_close(outs[0], loop(q, *shared, 20), **TOLERANCE)  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_what_is_not_finite_shows_in_its_own_sequence_alone(where: str, value: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    bad, good = Span(5, 0, 5, (0,)), Span(5, 0, 5, (1,))
    q, k, v = drawn(10, generator)
    (k if where == "keys" else v)[3, 0, 2] = value
    cache = empty_cache(3, 16, dtype=dtype)
    out = PagedAttention(cache, [bad, good])(0, q, k, v)
    assert not torch.isfinite(out[:5, 0]).all()
    assert torch.isfinite(out[5:]).all()
    one_q, one_k, one_v = (x[:1].clamp(-1, 1).nan_to_num() for x in (q, k, v))
    after = PagedAttention(cache, [Span(1, 16, 5, (0, 2))])(0, one_q, one_k, one_v)
    if dtype == torch.int8 or value != value:  # a float key of infinity may have the weight 0
        assert not torch.isfinite(after[0, 0]).all()
    # Whoever gets these blocks next is not touched by it.
    assert torch.equal(PagedAttention(cache, [Span(5, 0, 5, (0,))])(0, q[5:], k[5:], v[5:]), out[5:])


class TestReach:
    """Sliding windows: a row sees the tokens at most so many places away, on both sides."""

    @given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 9), block_sizes, seeds)
    @settings(max_examples=30, deadline=None)
    def test_a_row_sees_its_window(self, lengths: list[int], reach: int, block_size: int, seed: int) -> None:
        """Texts side by side over permuted blocks, each as the plain formula has it, and each with its bits alone."""
        generator = torch.Generator().manual_seed(seed)
        texts = [drawn(length, generator) for length in lengths]
        spans, used = [], 0
        for length in lengths:
            count = -(-length // block_size)
            order = torch.randperm(count, generator=generator).tolist()
            spans.append(Span(length, 0, length, tuple(used + n for n in order)))
            used += count
        q, k, v = (torch.cat([text[i] for text in texts]) for i in range(3))
        together = PagedAttention(empty_cache(used, block_size), spans)(0, q, k, v, reach).split(lengths)
        for (own_q, own_k, own_v), span, found in zip(texts, spans, together, strict=True):
            n = span.num_rows
            heads = own_q.shape[1] // own_k.shape[1]
            keys, values = (x.repeat_interleave(heads, dim=1) for x in (own_k, own_v))
            scores = torch.einsum("qhd,khd->hqk", own_q, keys) / own_q.shape[-1] ** 0.5
            far = torch.tensor([[abs(i - j) > reach for j in range(n)] for i in range(n)])
            wanted = torch.einsum("hqk,khd->qhd", scores.masked_fill(far, -torch.inf).softmax(-1), values)
            torch.testing.assert_close(found, wanted, **TOLERANCE)
            dense = DenseAttention(visible(n, torch.tensor([n])))(0, own_q[None], own_k[None], own_v[None], reach)
            torch.testing.assert_close(dense[0], wanted, **TOLERANCE)
            alone = PagedAttention(empty_cache(used, block_size), [span])(0, own_q, own_k, own_v, reach)
            assert torch.equal(alone, found)

    def test_layers_with_and_without_one_share_a_step(self) -> None:
        q, k, v = drawn(12, torch.Generator().manual_seed(1))
        attend = PagedAttention(empty_cache(2, 8), [Span(12, 0, 12, (1, 0))])
        first, near, far = attend(0, q, k, v), attend(0, q, k, v, 2), attend(0, q, k, v)
        assert torch.equal(first, far)
        assert not torch.equal(first, near)
        assert torch.equal(attend(0, q, k, v, 11), first)

    def test_rows_of_part_b_have_none(self) -> None:
        q, k, v = drawn(1, torch.Generator().manual_seed(1))
        with pytest.raises(ValueError, match="part B"):
            PagedAttention(empty_cache(2, 8), [Span(1, 8, 5, (0, 1))])(0, q, k, v, 3)

    @given(st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=4))
    def test_the_share_of_what_a_row_sees(self, texts: list[list[bool]]) -> None:
        spans = [Span(len(text), 0, len(text), (n,)) for n, text in enumerate(texts)]
        marked = torch.tensor([flag for text in texts for flag in text])
        found = PagedAttention(empty_cache(len(texts), 32), spans).share(marked).split([len(text) for text in texts])
        for text, shares in zip(texts, found, strict=True):
            assert shares.tolist() == pytest.approx([sum(text) / len(text)] * len(text))
            dense = DenseAttention(visible(len(text), torch.tensor([len(text)]))).share(torch.tensor([text]))
            torch.testing.assert_close(dense[0], shares)


def test_bytes_per_token_are_those_of_the_tensors() -> None:
    for dtype, expected in ((torch.float32, 4 * 64), (torch.float16, 2 * 64), (torch.int8, 64 + 4)):
        cache = KVCache(3, 5, 16, 2, 64, dtype, torch.device("cpu"))
        tensors = [t for vectors in (cache.keys, cache.values) for t in (vectors.numbers, vectors.scales)]
        per_token = sum(t.nbytes for t in tensors if t is not None) // (5 * 16)
        assert per_token == KVCache.bytes_per_token(3, 2, 64, dtype) == 2 * 3 * 2 * expected


def test_layers_keep_their_keys_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    cache = empty_cache(2, 4, num_layers=2)
    attend = PagedAttention(cache, [Span(5, 0, 5, (1, 0))])
    first, second = drawn(5, generator), drawn(5, generator)
    torch.testing.assert_close(attend(0, *first), loop(*first, 5), **TOLERANCE)
    torch.testing.assert_close(attend(1, *second), loop(*second, 5), **TOLERANCE)
    torch.testing.assert_close(cache.keys.numbers[0, 4:8], first[1][:4])
    torch.testing.assert_close(cache.keys.numbers[1, 4:8], second[1][:4])


# A request gets the same bits alone and in a batch of 64. Where they were lost: at 1 and 3 rows with heads of 64 and
# at every odd height below 32 with heads of 8, once two threads shared the heads, since each thread's scratch
# memory lies elsewhere; and in the GELU at 3 threads, whose shares of the elements end amid a vector.


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 16, 17, 23, 31, 33, 65])
@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_has_the_same_bits_alone_and_amid_63_others(dtype: torch.dtype, head_dim: int, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    count = -(-(num_rows + 20) // 16)  # blocks of a sequence: 20 tokens of part A, then the rows, from slot 32
    heads, start = 4, 32
    blocks = torch.randperm(64 * (count + 1), generator=generator).view(64, count + 1).tolist()
    cache = KVCache(1, 64 * (count + 1), 16, heads, head_dim, dtype, torch.device("cpu"))
    every = torch.arange(64 * (count + 1) * 16)
    for vectors in (cache.keys, cache.values):
        vectors[0].write(every, torch.randn(len(every), heads, head_dim, generator=generator))
    spans = [Span(num_rows, start, 20, tuple(b)) for b in blocks]
    q, k, v = (torch.randn(64 * num_rows, heads, head_dim, generator=generator) for _ in range(3))
    amid = PagedAttention(cache, spans)(0, q, k, v)
    different = []
    for number in (0, 1, 31, 32, 62, 63):
        own = slice(number * num_rows, (number + 1) * num_rows)
        alone = PagedAttention(cache, [spans[number]])(0, q[own], k[own], v[own])
        if not torch.equal(alone, amid[own]):
            different.append(number)
    assert different == []


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_network_has_the_same_bits_alone_and_amid_63_others(dtype: torch.dtype, quant: str) -> None:
    architecture = glm.architecture(2, 64, 8, 101, 128)
    generator = torch.Generator().manual_seed(0)
    model = random_network(architecture, build(quant), generator)
    batch = [Shape(1 + (number * 7) % 40, number % 9, 9) for number in range(64)]
    ids = [torch.randint(0, 101, (len(shape),), generator=generator) for shape in batch]
    amid = logits(model, batch, ids, dtype, generator)
    different = []
    for number in (0, 5, 26, 63):
        (alone,) = logits(model, [batch[number]], [ids[number]], dtype, generator)
        assert torch.isfinite(alone).all()
        if not torch.equal(alone, amid[number]):
            different.append(number)
    assert different == []


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("num_rows", [17, 64])
def test_feed_forward_rows_have_the_same_bits_alone_and_together(num_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mlp = random_network(glm.architecture(1, 512, 2, 5, 4), Float(), generator).transformer.layers[0].mlp
    x = torch.randn(num_rows, 512, generator=generator) * 0.1  # in the GELU's bend
    together = mlp(x)  # type: ignore[operator]
    assert [row for row in range(num_rows) if not torch.equal(mlp(x[row : row + 1])[0], together[row])] == []  # type: ignore[operator]


def random_network(architecture: Architecture, scheme: Scheme, generator: torch.Generator) -> Network:
    model = Network(architecture, scheme).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.int8:
            parameter.data = torch.randint(-127, 128, parameter.shape, generator=generator, dtype=torch.int8)
        else:
            scale = 0.003 if name.endswith("weight_scale") else 0.3
            parameter.data = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)
    for module in model.modules():
        if isinstance(module, Linear):
            module.assign(module.packed())
    return model


def logits(
    model: Network, batch: list[Shape], ids: list[Tensor], dtype: torch.dtype, generator: torch.Generator
) -> list[Tensor]:
    """Logits of every row of every sequence: part A of all in a step, then part B."""
    a = model.architecture
    counts = [sum(num_blocks(shape, 16)) for shape in batch]
    order = torch.randperm(sum(counts), generator=generator).tolist()
    heads, head_dim = a.num_key_value_heads, a.head_dim
    cache = KVCache(a.num_layers, len(order), 16, heads, head_dim, dtype, torch.device("cpu"))
    queues = []
    for shape, count in zip(batch, counts, strict=True):
        queues.append(pieces(shape, 16, tuple(order[:count])))
        order = order[count:]
    outs = [torch.full((len(shape), a.vocab_size), torch.nan) for shape in batch]
    while any(queues):
        step = [(number, *queue.pop(0)) for number, queue in enumerate(queues) if queue]
        token_ids = torch.cat([ids[number][rows] for number, rows, _ in step])
        zeros = torch.zeros_like(token_ids)
        hidden = model(token_ids, zeros, zeros, PagedAttention(cache, [span for *_, span in step]))
        parts = model.logits(hidden).split([span.num_rows for *_, span in step])
        for (number, rows, _), part in zip(step, parts, strict=True):
            outs[number][rows] = part
    return outs
