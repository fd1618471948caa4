"""`bench decode`: every figure is there."""

import pytest

from engine.bench import DecodeBench, decode
from model.families import glm
from model.storage import Storage
from quant.usage import UsageError


def test_decode_tells_what_was_measured() -> None:
    architecture = glm.architecture(2, 64, 2, 101, 128)
    result = decode(DecodeBench(architecture, Storage("int8"), (1, 3), 20, context=50, kv_cache_type="int8", steps=2))
    assert (result["kv_cache_type"], result["context"]) == ("int8", 50)
    assert list(result["decode"]) == ["1", "3"]
    assert all(row["step_ms"] > 0 for row in result["decode"].values())
    assert result["prefill_20"]["tokens_per_s"] > 0


def test_a_context_longer_than_the_positions_is_refused() -> None:
    architecture = glm.architecture(2, 64, 2, 101, 128)
    with pytest.raises(UsageError, match="a context of 128 needs 132 positions of 128"):
        decode(DecodeBench(architecture, Storage("int8"), (1,), 0, context=128, steps=2))
