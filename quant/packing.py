"""Byte layouts of int4 and int8 weights: nibble pairs as GLM-130B stores them, and the CPU kernels' tiles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quant import cpu
from quant.memory import huge_page_zeros

TILE = 16  # outputs of a tile of the CPU kernels, and what torch's own wants a multiple of
_tile = cpu.Kernel("tile", cpu.INT32, cpu.POINTER, cpu.INT64, cpu.INT64, cpu.INT64, cpu.POINTER)
_pair_halves = cpu.Kernel("pair_halves", cpu.POINTER, cpu.INT64, cpu.INT64, cpu.POINTER)
_ROWS = 1024  # outputs repacked at once: what is unpacked for a moment stays small


def pack_nibbles(codes: Tensor) -> Tensor:
    """int8 codes −8 … 7 [rows, n], n even → int8 bytes [rows, n/2]; element 2i is the high nibble.

    Source: GLM-130B, quantization/layers.py.
    """
    pairs = codes.view(torch.uint8)
    return (pairs[:, 0::2] << 4 | pairs[:, 1::2] & 15).view(torch.int8)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """int8 bytes [rows, n/2] → int8 codes [rows, n]: the inverse of `pack_nibbles`."""
    pairs = torch.stack([packed >> 4, packed << 4 >> 4], dim=-1)  # shifts of int8 keep the sign
    return pairs.flatten(-2)


def pair_halves(blocks: Tensor) -> Tensor:
    """Unsigned nibbles, byte j of a block with number j low and number j + 16 high → pairs as `pack_nibbles` has them.

    uint8 [rows, blocks, 16], also a view of longer blocks, → int8 [rows, blocks · 16].
    """
    rows, count, _ = blocks.shape
    if cpu.number() is not None and blocks.stride()[2] == 1 and blocks.stride()[0] == count * blocks.stride()[1]:
        out = torch.empty(rows, count * 16, dtype=torch.int8)
        _pair_halves(cpu.number(), blocks, rows * count, blocks.stride()[1], out)
        return out
    codes = torch.cat([blocks & 15, blocks >> 4], dim=-1).flatten(1).view(torch.int8) - 8
    return pack_nibbles(codes)


def tiles(stored: Tensor, bits: int, inputs: int) -> Tensor:
    """Stored int4 pairs or int8 codes → the tiles that the CPU kernels read.

    Tiles are [tiles, inputs / 8, 16, 4] uint8 with inputs 0–3 of eight in the low nibbles and 4–7 in the high ones, or
    [tiles, inputs / 4, 16, 4]. Numbers are unsigned: code + 8, or code + 128. `inputs` is the number of inputs rounded
    up to the kernel's groups. Inputs and outputs that fill up tiles have code 0.
    """
    width = 8 if bits == 4 else 4
    if cpu.number() is not None:
        rows, words = stored.contiguous(), inputs // width
        out = huge_page_zeros((-(-rows.shape[0] // TILE), words, TILE, 4))
        _tile(cpu.number(), bits, rows, rows.shape[0], rows.shape[1], words, out)
        return out
    return _plain_tiles(stored, bits, inputs)


def _plain_tiles(stored: Tensor, bits: int, inputs: int) -> Tensor:
    """What `tiles` does, by torch."""
    width = 8 if bits == 4 else 4
    outputs = stored.shape[0]
    out = huge_page_zeros((-(-outputs // TILE), inputs // width, TILE, 4))
    for start in range(0, outputs, _ROWS):
        codes = unpack_nibbles(stored[start : start + _ROWS]) if bits == 4 else stored[start : start + _ROWS]
        rows = -(-codes.shape[0] // TILE) * TILE
        codes = F.pad(codes, (0, inputs - codes.shape[1], 0, rows - codes.shape[0]))
        if bits == 4:
            low, high = (codes + 8).view(torch.uint8).view(-1, TILE, inputs // 8, 2, 4).transpose(1, 2).unbind(3)
            out[start // TILE : start // TILE + len(low)] = low | high << 4
        else:
            unsigned = codes.view(torch.uint8) ^ 128
            out[start // TILE : start // TILE + rows // TILE] = unsigned.view(-1, TILE, inputs // 4, 4).transpose(1, 2)
    return out


def code_bytes(inputs: int, group: int) -> int:
    """Bytes of one row of inputs in the CPU kernels: int8 codes, and a scale and a start per group."""
    return inputs + 8 * -(-inputs // group)


def untile(packed: Tensor, bits: int, index: Tensor) -> Tensor:
    """int8 codes [..., inputs] of the outputs `index` [...] of a tiled weight."""
    row = packed[index // TILE, :, index % TILE]  # [..., inputs / 8 or inputs / 4, 4]
    if bits == 8:
        return (row ^ 128).view(torch.int8).flatten(-2)
    return torch.stack([row & 15, row >> 4], dim=-2).view(torch.int8).flatten(-3) - 8


def tiled_scale(scale: Tensor) -> Tensor:
    """Scales [outputs, groups] → [tiles, groups, 16], zero for the outputs that fill the last tile."""
    padded = F.pad(scale, (0, 0, 0, -len(scale) % TILE))
    return padded.view(-1, TILE, scale.shape[1]).transpose(1, 2).contiguous()
