"""Second-order error compensation: rounding a weight so that the layer's outputs, not its numbers, change least.

GPTQ's method (arXiv 2210.17323): inputs are rounded one after another, and what rounding one of them changes in the
outputs is taken back by the inputs that are still to come, as far as they are correlated on calibration text.
"""

import torch
from torch import Tensor

from quant.schemes import Int4, Int8, Scheme, Tensors, quantize_rows

BLOCK = 128  # inputs whose errors are gathered before the inputs behind them are touched; a multiple of every group
DAMPING = 0.01  # of the mean diagonal, added to the diagonal
CLIPPING = (1.0, 0.95, 0.9, 0.85, 0.8)  # shares of a group's absmax that its scale may stand for


def check(scheme: Scheme) -> Int8 | Int4:
    """The scheme. Raises ValueError for one whose codes cannot be compensated."""
    if not isinstance(scheme, Int8 | Int4):
        raise ValueError(f"{scheme.name} weights cannot be calibrated, only int8 and int4")
    return scheme


def compensate(weight: Tensor, hessian: Tensor, scheme: Scheme) -> Tensors:
    """The stored form of a float weight [out_features, in_features], rounded with compensation.

    `hessian` [in_features, in_features] is Σ x·xᵀ over the layer's inputs, by any factor. Inputs that were always zero
    are rounded plainly, and so is an output that compensation would serve worse: Σ ‖(W − Q)·x‖² is never larger than
    plain rounding's. Needs about 24·in_features² bytes. Raises ValueError for NaN or infinity, for sizes that the
    scheme cannot hold, and for schemes other than int8 and int4.
    """
    scheme = check(scheme)
    plain = scheme.quantize(weight)
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the layer's inputs hold NaN or infinity")
    weight = weight.float()
    codes, scale = _rounded(weight, _sensitivity(hessian), scheme)
    stored = scheme.stored(codes, scale) if isinstance(scheme, Int4) else {"weight": codes, "weight_scale": scale[:, 0]}
    better = _loss(weight - scheme.dequantize(stored), hessian) < _loss(weight - scheme.dequantize(plain), hessian)
    for name, tensor in stored.items():
        tensor[~better] = plain[name][~better]
    return stored


def _sensitivity(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped hessian's inverse, float32 [in_features, in_features].

    In float64: the damped condition number is at most 100·in_features, which float32 would not survive.
    """
    damped = hessian.double()
    diagonal = damped.diagonal().clone()
    dead = diagonal <= 0
    diagonal[dead] = 1.0
    diagonal[~dead] += DAMPING * diagonal[~dead].mean() if bool((~dead).any()) else 0.0
    damped = damped.masked_fill(dead[:, None] | dead, 0.0)
    damped.diagonal().copy_(diagonal)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def _rounded(weight: Tensor, sensitivity: Tensor, scheme: Int8 | Int4) -> tuple[Tensor, Tensor]:
    """Codes int8 [out_features, in_features] and scales [out_features, groups]."""
    outputs, inputs = weight.shape
    group = (scheme.group_size if isinstance(scheme, Int4) else 0) or inputs
    weight, codes = weight.clone(), torch.empty(outputs, inputs, dtype=torch.int8)
    most, scales = _most(scheme), list[Tensor]()
    for first in range(0, inputs, BLOCK):
        last = min(first + BLOCK, inputs)
        errors = torch.empty(outputs, last - first)
        for i in range(first, last):
            if i % group == 0:
                members = slice(i, i + group)
                scales.append(_scale(weight[:, members], sensitivity.diagonal()[members], scheme))
                step = scales[-1].float()
            code = (weight[:, i : i + 1] / step).round().clamp(-most, most)
            error = (weight[:, i : i + 1] - code * step) / sensitivity[i, i]
            weight[:, i:last] -= error * sensitivity[i, i:last]
            codes[:, i], errors[:, i - first] = code[:, 0], error[:, 0]
        weight[:, last:] -= errors @ sensitivity[first:last, last:]
    return codes, torch.cat(scales, dim=1)


def _scale(group: Tensor, sensitivity: Tensor, scheme: Int8 | Int4) -> Tensor:
    """Of the scales that CLIPPING allows, each output's [out_features, 1] with the least weighted error."""
    most = _most(scheme)
    best, least = torch.empty(0), torch.empty(0)
    for share in CLIPPING:
        scale = _absmax_scale(group * share, scheme)
        step = scale.float()
        codes = (group / step).round().clamp(-most, most)
        error = ((group - codes * step) / sensitivity).square().sum(1, keepdim=True)
        if share == CLIPPING[0]:
            best, least = scale, error
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def _most(scheme: Int8 | Int4) -> int:
    """The largest code."""
    return 7 if isinstance(scheme, Int4) else 127


def _absmax_scale(group: Tensor, scheme: Int8 | Int4) -> Tensor:
    """The scheme's own scale of one group, [out_features, 1]."""
    return scheme.scale(group[:, None]) if isinstance(scheme, Int4) else quantize_rows(group)[1]


def _loss(error: Tensor, hessian: Tensor) -> Tensor:
    """Σ (e·x)² of each output, [out_features]."""
    return ((error @ hessian.float()) * error).sum(1)
