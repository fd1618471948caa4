"""Groups of inputs that share a float16 scale: the scales, the numbers that codes stand for, cuts between groups."""

import torch
from torch import Tensor

from quant.scheme import Narrowing, ReduceMax, identity
from quant.usage import UsageError


def check_group_size(group_size: int, sizes: tuple[int, ...]) -> int:
    """Returns the group size. Raises UsageError if it is none of a scheme's `sizes`."""
    if group_size not in sizes:
        raise UsageError(f"group_size must be one of {', '.join(map(str, sizes))} (0: whole rows)")
    return group_size


def check_groups(group_size: int, in_features: int) -> None:
    """Raises UsageError if groups of `group_size` inputs (0: a whole row) do not fill a row."""
    if group_size and in_features % group_size:
        raise UsageError(f"group_size {group_size} does not divide the {in_features} inputs")


def half_scales(grouped: Tensor, code_range: tuple[int, int], reduce_max: ReduceMax = identity) -> Tensor:
    """The smallest float16 scales [rows, groups] whose codes reach both ends of a group; 1 for zeros.

    `grouped` is [rows, groups, inputs a group]. If the lowest code is farther from 0 than the highest, a scale is
    negative where the group's largest number is positive: so the code farthest from 0 stands for the larger side.
    Raises UsageError for numbers too large for float16.
    """
    lowest, highest = code_range
    high, low = reduce_max(torch.stack([grouped.amax(-1), -grouped.amin(-1)]))
    most = torch.maximum(torch.maximum(high, low) / -lowest, torch.minimum(high, low) / highest)
    if bool((most > torch.finfo(torch.float16).max).any()):
        raise UsageError("the weight is too large for float16 scales")
    steps = (most * 2.0**24).ceil()  # of these few of float16's smallest steps, rounding down would cut the largest
    most = torch.where(steps <= -lowest, steps * 2.0**-24, most)
    signed = torch.where((high > low) & (lowest != -highest), -most, most)
    return torch.where(most == 0, 1.0, signed).to(torch.float16)


def meant(codes: Tensor, scales: Tensor) -> Tensor:
    """codes [..., inputs] with scales [..., groups] → the numbers that they stand for, float32 [..., inputs]."""
    groups = scales.shape[-1]
    grouped = codes.float().reshape(*codes.shape[:-1], groups, codes.shape[-1] // groups)
    return (grouped * scales.float()[..., None]).flatten(-2)


def cut_inputs(start: int, length: int, whole: int, size: int) -> Narrowing:
    """The stretch along dimension 1 of a stored tensor whose elements stand for `size` inputs each.

    Raises UsageError for a border that is no multiple of `whole` inputs.
    """
    if start % whole or length % whole:
        raise UsageError(f"a cut of inputs at {start} + {length} goes through a group of {whole}")
    return 1, start // size, length // size
