"""GPTQ (arXiv 2210.17323) as AutoGPTQ and GPTQModel write it, versions 1 and 2, in 4 or 8 bits.

A module has `qweight` int32 [inputs · bits / 32, outputs], `scales` [groups, outputs], `qzeros` int32 [groups, outputs
· bits / 32] and mostly `g_idx` [inputs], the group of each input, which act-order permutes. Version 1 stores each zero
less one, by a subtraction from whole words; version 2 the zero itself (GPTQModel, utils/model.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import CheckpointError
from model.files import open_files
from model.format import Format
from model.formats.affine import SCALES, Affine, Parts, group_order
from model.formats.bit_words import WORD, covering, unpack, words_for
from model.formats.keeping import keeping
from model.formats.packed_source import PackedSource, columns_of, expect, modules_with
from model.formats.settings import Settings
from model.source import Source

OLD = "quantize_config.json"  # where AutoGPTQ writes its settings, if not into config.json
_ONES = {4: 0x11111111, 8: 0x01010101}  # one in each code of a word


def _recognises(path: Path, quantization: Mapping[str, Any]) -> bool:
    return quantization.get("quant_method") == "gptq" or (not quantization and (path / OLD).exists())


def _opened(path: Path) -> PackedSource:
    settings = Settings.read(path, OLD)
    settings.only("is_marlin_format", False)
    version = settings.one_of("checkpoint_format", "gptq", "gptq_v2")
    settings.only("pack_dtype", "int32")
    bits, group_size = settings.one_of("bits", 4, 8), settings.group_size("group_size")
    mixed = bool(settings.get("dynamic"))
    source = open_files(path)
    matrices, hidden = {}, set()
    for module in modules_with(source, "qweight"):
        own = _bits(source, module) if mixed else bits
        matrices[f"{module}.weight"] = _Module(source, module, own, version == "gptq").matrix(group_size)
        hidden |= {f"{module}.{leaf}" for leaf in ("qweight", "qzeros", "scales", "g_idx")}
    return PackedSource(source, matrices, hidden)


def _bits(source: Source, module: str) -> int:
    """The bits of a module's codes, where `dynamic` gives modules bits of their own: by the words of a row of zeros."""
    outputs = source.entries[f"{module}.qweight"][0][-1]
    words = source.entries.get(f"{module}.qzeros", ((0,),))[0][-1]
    found = [bits for bits in _ONES if words == words_for(outputs, bits)]
    if not found:
        raise CheckpointError(f"{module}.qzeros has {words} words for {outputs} outputs, neither 4 nor 8 bits each")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Module:
    """The tensors of a module whose codes have `bits` bits."""

    source: Source
    path: str
    bits: int
    version1: bool

    def matrix(self, group_size: int) -> Affine:
        """The module's matrix. Raises CheckpointError for tensors that do not belong together."""
        source, weight, index = self.source, f"{self.path}.qweight", f"{self.path}.g_idx"
        shape = source.entries[weight][0]
        if len(shape) != 2:
            raise CheckpointError(f"{weight} has shape {list(shape)}, expected two dimensions")
        inputs, outputs = shape[0] * WORD // self.bits, shape[1]
        size = group_size or inputs
        count = -(-inputs // max(size, 1))
        if index in source.entries:
            expect(source, index, (inputs,), dtypes=(torch.int32, torch.int64))
        expect(source, weight, shape, dtypes=(torch.int32,))
        expect(source, f"{self.path}.qzeros", (count, words_for(outputs, self.bits)), dtypes=(torch.int32,))
        expect(source, f"{self.path}.scales", (count, outputs), dtypes=SCALES)
        groups = source.read(index) if index in source.entries else torch.arange(inputs) // size
        parts = Parts(self.codes, self.scales, self.zeros, group_order(groups, index, count, size))
        return Affine((outputs, inputs), f"{self.bits}-bit codes", parts, keeping(self.bits, inputs, group_size))

    def codes(self, start: int, count: int) -> Tensor:
        """int8 codes [count, inputs], centred."""
        words = columns_of(self.source, f"{self.path}.qweight", start, count).T
        return centred(unpack(words, self.bits), self.bits)

    def scales(self, start: int, count: int) -> Tensor:
        """Scales [count, groups]."""
        return columns_of(self.source, f"{self.path}.scales", start, count).T

    def zeros(self, start: int, count: int) -> Tensor:
        """int8 zeros [count, groups], centred."""
        first, number, skipped = covering(start, count, self.bits)
        words = columns_of(self.source, f"{self.path}.qzeros", first, number)
        if self.version1:
            words = (words.long() + _ONES[self.bits]).to(torch.int32)  # as whole words, which wrap around
        return centred(unpack(words, self.bits)[:, skipped : skipped + count], self.bits).T


def centred(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [...], 0 … 2^bits − 1 → int8 [...] around zero."""
    return codes.view(torch.int8) ^ -128 if bits == 8 else codes.view(torch.int8) - (1 << (bits - 1))


FORMAT = Format("GPTQ", _recognises, _opened)
