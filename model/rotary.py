"""Rotary position embedding (arXiv 2104.09864) in the forms that GLM-130B, ChatGLM-6B and GLM-4 have."""

from functools import cache

import torch
from torch import Tensor

from model.architecture import Rotary

RotaryAngles = tuple[Tensor, Tensor]  # cosine and sine, each [..., 1, axes, size / axes / 2]


@cache
def table(rotary: Rotary, rows: int, dtype: torch.dtype, device: torch.device) -> RotaryAngles:
    """Cosine and sine [rows, size / axes / 2] of positions 0 … rows − 1, in `dtype`."""
    kind = torch.float16 if rotary.angles == "float16" else torch.float32
    size = rotary.size // rotary.axes
    frequency = (1.0 / rotary.base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)).to(kind)
    angle = torch.arange(rows, dtype=kind)[:, None] * frequency
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rotation(rotary: Rotary, rows: int, positions: Tensor, block_positions: Tensor, dtype: torch.dtype) -> RotaryAngles:
    """The cosines and sines by which rows at these positions, each [...] and below `rows`, are rotated."""
    place = torch.stack((positions, block_positions)[: rotary.axes], dim=-1)
    cosine, sine = table(rotary, rows, dtype, positions.device)
    return cosine[place][..., None, :, :], sine[place][..., None, :, :]


def rotate(x: Tensor, cos_sin: RotaryAngles, rotary: Rotary) -> Tensor:
    """Queries or keys [..., heads, head_dim] rotated by the cosines and sines of `rotation`."""
    cosine, sine = cos_sin
    own = x[..., : rotary.size].reshape(*x.shape[:-1], rotary.axes, rotary.size // rotary.axes)
    if rotary.interleaved:
        first, second = own[..., 0::2], own[..., 1::2]
    else:
        first, second = own.chunk(2, dim=-1)
    halves = first * cosine - second * sine, second * cosine + first * sine
    out = torch.stack(halves, dim=-1).flatten(-2) if rotary.interleaved else torch.cat(halves, dim=-1)
    return torch.cat([out.flatten(-2), x[..., rotary.size :]], dim=-1)
