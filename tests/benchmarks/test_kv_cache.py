"""The cache benchmark: its ways differ in what they measure alone, and capacity is that of published shapes."""

from benchmarks.kv_cache import capacity, step_ms
from model.families import glm
from model.random_weights import synthetic
from quant.registry import build
from quant.schemes.none import Float


def test_every_way_is_timed() -> None:
    model = synthetic(glm.architecture(1, 64, 2, 101, 128), build("int8"), Float())
    times = step_ms(model, 3, 40, 2)
    assert list(times) == [f"{kind}, {pages} pages" for kind in ("float32", "int8") for pages in ("ordinary", "huge")]
    assert min(times.values()) > 0


def test_capacity_is_that_of_the_published_shapes() -> None:
    sizes = {name: row["bytes_per_token"] for name, row in capacity("chatglm-6b").items()}
    assert sizes == {"float32": 28 * 2 * 32 * 512, "float16": 28 * 2 * 32 * 256, "int8": 28 * 2 * 32 * 132}
