"""Second-order error compensation: it rounds a weight so that the error of the layer's outputs is small.

The method is GPTQ's (arXiv 2210.17323). It rounds one input after another, those with the largest second moments first.
The inputs that are not rounded yet compensate each rounding error, as far as they correlate with the rounded input on
calibration text. They also compensate the errors of the layers before, as in Qronos (arXiv 2505.11695).

The scheme finds its scales beforehand. Smaller scales, which clip the largest weights, lowered the error of a layer's
outputs, but raised the demo's perplexity, in groups of 32 and of 128.
"""

import torch
from torch import Tensor

from quant.registry import scheme_facts, scheme_names
from quant.scheme import IntegerScheme, Scheme, Tensors
from quant.usage import UsageError

BLOCK = 128  # inputs whose errors are gathered before the inputs behind them are touched
DAMPING = 0.01  # of the mean diagonal, added to the diagonal


def check(scheme: Scheme) -> IntegerScheme:
    """Returns the scheme. Raises UsageError for a scheme whose codes `compensate` cannot choose."""
    if not isinstance(scheme, IntegerScheme):
        names = [name for name in scheme_names() if scheme_facts(name).calibrates]
        raise UsageError(f"{scheme.name} weights cannot be calibrated; these can: {', '.join(names)}")
    return scheme


def compensate(weight: Tensor, hessian: Tensor, scheme: Scheme, drift: Tensor | None = None) -> Tensors:
    """The stored form of a float weight [out_features, in_features], rounded with compensation.

    `hessian` is Σ x·xᵀ over the layer's inputs x, times any factor. `drift` is Σ (y − x)·xᵀ times the same factor,
    where y are the inputs in the float network. Both are [in_features, in_features].

    An input that was always zero is rounded without compensation. An output whose error compensation would raise is
    rounded to the nearest. So Σ ‖(W − Q)·x‖² is never larger than with rounding to the nearest, W being corrected for
    the drift. Needs about 32·in_features² + 32·in_features·out_features bytes. Raises UsageError for NaN or infinity,
    for sizes that the scheme cannot hold, and for a scheme without integer codes.
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
    """The Hessian in float64 with a positive diagonal. An input that was always zero gets a diagonal of 1.

    Its condition number is at most 100·in_features, which is too large for float32.
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
    # The weights by which later inputs compensate an error: the upper Cholesky factor of the inverse.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    spread = torch.linalg.cholesky(inverse, upper=True).float()
    rows = weight.t()[order]  # a copy [inputs, outputs]; rows not rounded yet compensate errors
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
