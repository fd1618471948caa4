"""A weighted draw of one index, for a sampler: a CPU kernel over numpy rows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quant import cpu

Draw = Callable[[NDArray[np.float32], float, int, float, float, int], int]

_kernel = cpu.Kernel(
    "draw",
    *(cpu.POINTER, cpu.POINTER, cpu.INT64, cpu.FLOAT32, cpu.INT64, cpu.FLOAT64, cpu.FLOAT64, cpu.UINT64),
    returns=cpu.INT64,
    threaded=False,
)


def drawing(logit_mask: NDArray[np.float32]) -> Draw | None:
    """A function `draw(scores, sharpness, limit, top_p, min_p, state)` that draws an index; None without CPU kernels.

    `scores` float32 [count] is a row, to which the function adds `logit_mask` [count]. Weights are exp(sharpness ·
    score). An index is a candidate if fewer than `limit` indices come before it (by weight, then by number), if those
    hold less than `top_p` of the total weight, and if it has at least `min_p` of the largest weight. `state` is the
    state of the random number generator, splitmix64.
    """
    number = cpu.number()
    if number is None:
        return None
    function, at, count = _kernel.bound(number), logit_mask.ctypes.data, len(logit_mask)

    def draw(scores: NDArray[np.float32], sharpness: float, limit: int, top_p: float, min_p: float, state: int) -> int:
        scores = np.ascontiguousarray(scores)
        if scores.shape != logit_mask.shape:
            raise ValueError(f"a row of {scores.shape} scores for {logit_mask.shape}")
        found: int = function(scores.ctypes.data, at, count, sharpness, limit, top_p, min_p, state)
        return found

    return draw
