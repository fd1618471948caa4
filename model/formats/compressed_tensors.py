"""compressed-tensors, as llm-compressor writes it: W4A16, W8A16 and W8A8 integers, and FP8.

A module packed by "pack-quantized" has `weight_packed` int32 [outputs, words], codes + 2^(bits − 1), `weight_shape`
int64 [2] and perhaps `weight_zero_point` int32 [words, groups], packed along the outputs; the other formats have
`weight` int8 or float8_e4m3fn, and `weight_zero_point` int8 [outputs, groups]. `weight_scale` is [outputs, groups], or
[1] for the whole matrix. `weight_g_idx` [inputs] is the group of each input, which older releases could permute (−1:
unused).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model.config import CheckpointError
from model.files import open_files
from model.format import Format
from model.formats.affine import SCALES, Affine, Parts, group_order
from model.formats.bit_words import covering, unpack, words_for
from model.formats.gptq import centred
from model.formats.keeping import keeping
from model.formats.packed_source import PackedSource, expect, modules_with, rows_of
from model.formats.settings import Settings
from model.source import Source

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_OWN = ("weight", "weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")
_BESIDE = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")  # of activations


@dataclass(frozen=True, slots=True)
class _Weights:
    """How a config group quantizes weights; `group_size` 0 stands for a scale a row or for the whole matrix."""

    kind: str
    bits: int
    group_size: int


def _opened(path: Path) -> PackedSource:
    settings = Settings.read(path)
    schemes = list(_schemes(settings))
    source = open_files(path)
    matrices = {}
    hidden: set[str] = set()
    packed = set(modules_with(source, "weight_packed"))
    for module in sorted(packed | set(modules_with(source, "weight_scale"))):
        matrix = _packed(source, module, schemes) if module in packed else _plain(source, module, schemes)
        matrices[f"{module}.weight"] = matrix
        hidden |= {f"{module}.{leaf}" for leaf in (*_OWN, *_BESIDE)}
    return PackedSource(source, matrices, hidden)


def _schemes(settings: Settings) -> Iterator[_Weights]:
    """What the config groups do to weights. Raises CheckpointError for what changes the network in another way."""
    settings.one_of("quantization_status", "compressed")
    settings.one_of("format", *FORMATS, "mixed-precision")
    for name, effect in (
        ("kv_cache_scheme", "quantizes keys and values"),
        ("transform_config", "rotates weights and activations"),
        ("sparsity_config", "leaves out weights"),
    ):
        value = settings.get(name)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            raise CheckpointError(f"{settings.source}: {name} {effect}, which is not read; use a folder without it")
    groups = settings.get("config_groups", {})
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise CheckpointError(f"{settings.source}: config_groups is {groups!r}, no object of objects")
    for name, group in groups.items():
        own = Settings(group, f"{settings.source}: config_groups.{name}")
        own.one_of("format", *FORMATS)
        if isinstance(weights := own.get("weights"), dict):
            yield _weights(Settings(weights, f"{own.source}.weights"))


def _weights(own: Settings) -> _Weights:
    kind = own.one_of("type", "int", "float")
    bits = own.one_of("num_bits", *((4, 8) if kind == "int" else (8,)))
    strategy = own.one_of("strategy", "channel", "group", "tensor")
    return _Weights(kind, bits, own.group_size("group_size") if strategy == "group" else 0)


def _packed(source: Source, module: str, schemes: list[_Weights]) -> Affine:
    expect(source, f"{module}.weight_shape", (2,), dtypes=(torch.int64, torch.int32))
    outputs, inputs = source.read(f"{module}.weight_shape").tolist()
    shape, _ = source.entries[f"{module}.weight_packed"]
    fitting = [own for own in schemes if own.kind == "int" and shape == (outputs, words_for(inputs, own.bits))]
    if outputs < 1 or inputs < 1 or not fitting:
        raise CheckpointError(
            f"{module}.weight_packed has shape {list(shape)}, which no config group of quantization_config gives a "
            f"weight of {outputs} × {inputs}"
        )
    expect(source, f"{module}.weight_packed", shape, dtypes=(torch.int32,))
    own = _fitting(source, module, (outputs, inputs), fitting)

    def codes(start: int, count: int) -> Tensor:
        words = rows_of(source, f"{module}.weight_packed", start, count)
        return centred(unpack(words, own.bits)[:, :inputs], own.bits)

    zeros = None
    if (name := f"{module}.weight_zero_point") in source.entries:
        expect(source, name, (words_for(outputs, own.bits), _groups(inputs, own)), dtypes=(torch.int32,))
        zeros = partial(_packed_zeros, source, name, own.bits)
    return _affine(source, module, (outputs, inputs), own, Parts(codes, partial(_scales, source, module), zeros))


def _packed_zeros(source: Source, name: str, bits: int, start: int, count: int) -> Tensor:
    """int8 zeros [count, groups]."""
    first, number, skipped = covering(start, count, bits)
    words = rows_of(source, name, first, number).T
    return centred(unpack(words, bits)[:, skipped : skipped + count], bits).T


def _plain(source: Source, module: str, schemes: list[_Weights]) -> Affine:
    name = f"{module}.weight"
    shape, dtype = source.entries.get(name, ((), None))
    kind = {torch.int8: "int", torch.float8_e4m3fn: "float"}.get(dtype) if dtype is not None else None
    if kind is None or len(shape) != 2:
        raise CheckpointError(f"{module}.weight_scale belongs to no matrix of codes: {name} is {list(shape)} {dtype}")
    own = _fitting(source, module, (shape[0], shape[1]), [own for own in schemes if own.kind == kind])
    zeros = None
    if (zero := f"{module}.weight_zero_point") in source.entries:
        expect(source, zero, source.entries[f"{module}.weight_scale"][0], dtypes=(torch.int8,))
        zeros = partial(_spread, source, zero)
    parts = Parts(partial(rows_of, source, name), partial(_scales, source, module), zeros)
    return _affine(source, module, (shape[0], shape[1]), own, parts)


def _fitting(source: Source, module: str, shape: tuple[int, int], schemes: list[_Weights]) -> _Weights:
    """The way of quantizing that these scales have. Raises CheckpointError if there is none."""
    name = f"{module}.weight_scale"
    outputs, inputs = shape
    found = source.entries.get(name, ((), None))[0]
    for own in schemes:
        count = _groups(inputs, own)
        whole = ((1,), (1, 1), (), (outputs,)) if count == 1 else ()
        if (found == (outputs, count) or found in whole) and inputs % count == 0:
            expect(source, name, found, dtypes=SCALES)
            return own
    raise CheckpointError(
        f"{name} has shape {list(found)}, which no config group of quantization_config gives a weight of "
        f"{outputs} × {inputs}"
    )


def _groups(inputs: int, own: _Weights) -> int:
    """The scales of a row."""
    return -(-inputs // own.group_size) if own.group_size else 1


def _affine(source: Source, module: str, shape: tuple[int, int], own: _Weights, parts: Parts) -> Affine:
    if (name := f"{module}.weight_g_idx") in source.entries:
        expect(source, name, (shape[1],), dtypes=(torch.int32, torch.int64))
        index = source.read(name)
        if bool((index != -1).any()):
            groups = group_order(index, name, _groups(shape[1], own), own.group_size or shape[1])
            parts = Parts(parts.codes, parts.scales, parts.zeros, groups)
    scheme = keeping(own.bits, shape[1], own.group_size) if own.kind == "int" else None
    return Affine(shape, "FP8" if own.kind == "float" else f"{own.bits}-bit codes", parts, scheme)


def _scales(source: Source, module: str, start: int, count: int) -> Tensor:
    """Scales [count, groups]."""
    return _spread(source, f"{module}.weight_scale", start, count)


def _spread(source: Source, name: str, start: int, count: int) -> Tensor:
    """Some rows of a tensor [outputs, groups], [outputs], [1] or [] as [count, groups]."""
    shape = source.entries[name][0]
    if len(shape) > 1 and shape[0] > 1:
        return rows_of(source, name, start, count)
    whole = source.read(name).reshape(-1, 1)
    return whole.expand(count, 1) if len(whole) == 1 else whole[start : start + count]


def _note(path: Path) -> str:
    """Which inputs of matrices the library would quantize, too."""
    groups = Settings.read(path).get("config_groups", {})
    quantizes = any(group.get("input_activations") or group.get("output_activations") for group in groups.values())
    return "the folder's quantization of activations is left out" if quantizes else ""


FORMAT = Format(
    "compressed-tensors",
    lambda path, quantization: quantization.get("quant_method") == "compressed-tensors",
    _opened,
    note=_note,
)
