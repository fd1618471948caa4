"""Second-order error compensation: rounding a weight so that the layer's outputs, not its numbers, change least.

GPTQ's method (arXiv 2210.17323): inputs are rounded one after another, those that matter most first, and what rounding
one of them changes in the outputs is taken back by the inputs still to come, as far as they are correlated with it on
calibration text. What the layers before have changed in the inputs is taken back too, as far as the inputs still tell
it (as in Qronos, arXiv 2505.11695).

Scales are the scheme's own, found beforehand. Smaller ones, which clip the largest weights, gave a layer's outputs less
error and the demo, in groups of 32 and 128, a higher perplexity.
"""

import torch
from torch import Tensor

from quant.registry import scheme_facts, scheme_names
from quant.scheme import IntegerScheme, Scheme, Tensors
from quant.usage import UsageError

BLOCK = 128  # inputs whose errors are gathered before the inputs behind them are touched
DAMPING = 0.01  # of the mean diagonal, added to the diagonal


def check(scheme: Scheme) -> IntegerScheme:
    """The scheme. Raises UsageError for one whose codes cannot be compensated."""
    if not isinstance(scheme, IntegerScheme):
        names = [name for name in scheme_names() if scheme_facts(name).calibrates]
        raise UsageError(f"{scheme.name} weights cannot be calibrated, only {', '.join(names)}")
    return scheme


def compensate(weight: Tensor, hessian: Tensor, scheme: Scheme, drift: Tensor | None = None) -> Tensors:
    """The stored form of a float weight [out_features, in_features], rounded with compensation.

    `hessian` is Σ x·xᵀ over the layer's inputs x, by any factor; `drift` is Σ (y − x)·xᵀ by the same factor, where y
    are the inputs that the float network would have had. Both are [in_features, in_features].

    Inputs that were always zero are rounded by themselves, and an output that compensation would serve worse is rounded
    plainly: Σ ‖(W − Q)·x‖² is never larger than plain rounding's, with W as the drift has it. Needs about
    32·in_features² + 32·in_features·out_features bytes. Raises UsageError for NaN or infinity, for sizes that the
    scheme cannot hold, and for a scheme whose codes are no integers.
    """
    scheme = check(scheme)
    plain = scheme.quantize(weight)
    if not bool(torch.isfinite(hessian if drift is None else hessian + drift).all()):
        raise UsageError("the layer's inputs hold NaN or infinity")
    weight, hessian = weight.float(), hessian.float()
    damped = _damped(hessian)
    if drift is not None:
        change = torch.cholesky_solve((weight @ drift).t().double(), torch.linalg.cholesky(damped))
        weight = weight + change.t().float()
    scales = scheme.scales(weight)
    stored = scheme.stored(_codes(weight, scales.float(), damped, scheme.code_range), scales)
    worse = _loss(weight - scheme.dequantize(stored), hessian) >= _loss(weight - scheme.dequantize(plain), hessian)
    for name, tensor in stored.items():
        tensor[worse] = plain[name][worse]
    return stored


def _damped(hessian: Tensor) -> Tensor:
    """The Hessian in float64 with a positive diagonal; inputs that were always zero stand for themselves.

    Its condition number is at most 100·in_features, which float32 would not survive.
    """
    damped = hessian.double()
    diagonal = damped.diagonal()  # a view
    dead = diagonal <= 0
    diagonal += DAMPING * diagonal.mean()
    damped[dead] = 0.0
    damped[:, dead] = 0.0
    diagonal[dead] = 1.0
    return damped


def _codes(weight: Tensor, scale: Tensor, hessian: Tensor, ends: tuple[int, int]) -> Tensor:
    """Codes between two ends, int8 [out_features, in_features], for scales [out_features, groups] and a damped
    Hessian."""
    outputs, inputs = weight.shape
    order = hessian.diagonal().argsort(descending=True, stable=True)
    # How an input's error goes to those behind it: the upper Cholesky factor of the inverse.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    spread = torch.linalg.cholesky(inverse, upper=True).float()
    rows = weight.t()[order]  # a copy, an input a row: what is not rounded yet takes up what rounding changes
    steps = scale.t()[order // (inputs // scale.shape[1])]
    codes = torch.empty(inputs, outputs, dtype=torch.int8)
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        errors = torch.empty(last - first, outputs)
        for i in range(first, last):
            code = (rows[i] / steps[i]).round().clamp(*ends)
            errors[i - first] = (rows[i] - code * steps[i]) / spread[i, i]
            rows[i:last] -= spread[i, i:last, None] * errors[i - first]
            codes[order[i]] = code.to(torch.int8)
        rows[last:] -= spread[first:last, last:].t() @ errors
    return codes.t().contiguous()


def _loss(error: Tensor, hessian: Tensor) -> Tensor:
    """Σ (e·x)² of each output, [out_features]."""
    return ((error @ hessian) * error).sum(1)
