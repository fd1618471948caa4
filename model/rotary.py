"""Rotary position embedding (arXiv 2104.09864) in the forms of GLM-130B, ChatGLM-6B and GLM-4."""

from functools import cache

import torch
from torch import Tensor

from model.architecture import Rotary

RotaryAngles = tuple[Tensor, Tensor]  # cosine and sine, each [..., 1, axes, size / axes / 2]


@cache
def table(rotary: Rotary, rows: int, dtype: torch.dtype, device: torch.device) -> RotaryAngles:
    """Cosines and sines [rows, size / axes / 2] of positions 0 … rows − 1, in `dtype`."""
    kind = torch.float16 if rotary.angles == "float16" else torch.float32
    angle = torch.arange(rows, dtype=kind)[:, None] * frequencies(rotary).to(kind)
    cosine, sine = angle.cos(), angle.sin()
    if rotary.stretch is not None:
        cosine, sine = cosine * rotary.stretch.amplitude, sine * rotary.stretch.amplitude
    return cosine.to(device, dtype), sine.to(device, dtype)


def frequencies(rotary: Rotary) -> Tensor:
    """Radians per position, [size / axes / 2] float32."""
    size, stretch = rotary.size // rotary.axes, rotary.stretch
    plain = 1.0 / rotary.base ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    if stretch is None:
        return plain
    if stretch.turns is None:
        return plain / stretch.factor
    first, last = stretch.blend(size, rotary.base)
    divided = ((torch.arange(size // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    return plain / stretch.factor * divided + plain * (1 - divided)


def rotation(rotary: Rotary, rows: int, positions: Tensor, block_positions: Tensor, dtype: torch.dtype) -> RotaryAngles:
    """Cosines and sines [..., 1, axes, size / axes / 2] of positions [...] below `rows`, for `rotate`."""
    place = torch.stack((positions, block_positions)[: rotary.axes], dim=-1)
    cosine, sine = table(rotary, rows, dtype, positions.device)
    return cosine[place][..., None, :, :], sine[place][..., None, :, :]


def rotate(x: Tensor, cos_sin: RotaryAngles, rotary: Rotary) -> Tensor:
    """Rotates queries or keys [..., heads, head_dim] by the cosines and sines of `rotation`."""
    cosine, sine = cos_sin
    own = x[..., : rotary.size].reshape(*x.shape[:-1], rotary.axes, rotary.size // rotary.axes)
    if rotary.interleaved:
        first, second = own[..., 0::2], own[..., 1::2]
    else:
        first, second = own.chunk(2, dim=-1)
    halves = first * cosine - second * sine, second * cosine + first * sine
    out = torch.stack(halves, dim=-1).flatten(-2) if rotary.interleaved else torch.cat(halves, dim=-1)
    return torch.cat([out.flatten(-2), x[..., rotary.size :]], dim=-1)
