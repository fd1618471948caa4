"""Model-parallel shards: together they are the tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.sharding import ShardSpec, cuts, merge, shard
from quant.usage import UsageError

SIZES = st.sampled_from([1, 2, 4, 8])


@given(size=SIZES, dim=st.sampled_from([0, 1]), sections=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_merged_shards_are_the_tensor(size: int, dim: int, sections: list[int]) -> None:
    shape = [3, 3]
    shape[dim] = 16 * sum(sections)
    tensor = torch.arange(shape[0] * shape[1]).reshape(shape)
    cut = ShardSpec(dim, tuple(16 * section for section in sections))
    shards = [shard(tensor, cut, rank, size) for rank in range(size)]
    assert all(part.shape[dim] * size == shape[dim] for part in shards)
    assert torch.equal(merge(iter(shards), cut, [part.shape[dim] for part in shards]), tensor)


@given(size=SIZES)
def test_the_number_of_a_row_does_not_matter_to_a_bias(size: int) -> None:
    cut = cuts((64, 16, 16), 2)
    weight, bias = torch.arange(96 * 3).reshape(96, 3), torch.arange(96)
    for rank in range(size):
        rows = shard(weight, cut("transformer.layers.0.attention.query_key_value.weight"), rank, size)[:, 0] // 3
        assert torch.equal(rows, shard(bias, cut("transformer.layers.0.attention.query_key_value.bias"), rank, size))


def test_a_rank_has_its_third_of_each_of_queries_keys_and_values() -> None:
    """GLM change_mp.py"""
    assert shard(torch.arange(12), ShardSpec(0, (4, 4, 4)), 1, 2).tolist() == [2, 3, 6, 7, 10, 11]


def test_a_rank_has_its_part_of_each_half_of_a_gated_mlp() -> None:
    """GLM-130B tools/convert_tp.py"""
    assert shard(torch.arange(8), ShardSpec(0, (1, 1)), 0, 2).tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize("dim", [0, 1])
def test_a_shard_of_one_section_is_a_view(dim: int) -> None:
    tensor = torch.zeros(8, 8)
    shard(tensor, ShardSpec(dim), 1, 4).fill_(1)
    assert tensor.sum() == 16


def test_without_a_cut_every_rank_has_the_tensor_itself() -> None:
    tensor = torch.zeros(5)
    assert shard(tensor, None, 1, 2) is tensor
    assert merge([tensor, tensor], None, [5, 5]) is tensor


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match=r"24 along dimension 0 in sections \(4, 1, 1\) are not divisible by 8"):
        shard(torch.zeros(24), ShardSpec(0, (4, 1, 1)), 0, 8)


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("word_embeddings.weight", ShardSpec(0, ragged=True)),
        ("lm_head.weight", ShardSpec(0, ragged=True)),
        ("transformer.position_embeddings.weight", None),
        ("transformer.block_position_embeddings.weight", None),
        ("transformer.layers.3.input_layernorm.weight", None),
        ("transformer.layers.3.attention.query_key_value.weight", ShardSpec(0, (8, 2, 2))),
        ("transformer.layers.3.attention.query_key_value.bias", ShardSpec(0, (8, 2, 2))),
        ("transformer.layers.3.attention.query_key_value.weight_scale", ShardSpec(0, (8, 2, 2))),
        ("transformer.layers.3.attention.dense.weight", ShardSpec(1)),
        ("transformer.layers.3.attention.dense.weight_scale", ShardSpec(1)),
        ("transformer.layers.3.attention.dense.bias", None),
        ("transformer.layers.3.mlp.dense_h_to_4h.bias", ShardSpec(0, (1, 1))),
        ("transformer.layers.3.mlp.dense_4h_to_h.weight", ShardSpec(1)),
        ("transformer.layers.3.mlp.dense_4h_to_h.bias", None),
        ("transformer.final_layernorm.bias", None),
        ("mlm_head.dense.weight", None),
    ],
)
def test_cuts_of_the_network(name: str, cut: ShardSpec | None) -> None:
    assert cuts((8, 2, 2), 2)(name) == cut
