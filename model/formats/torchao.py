"""torchao's integer weights, as transformers 5 saves them in safetensors.

A module has `_weight_qdata` int8 [outputs, inputs], `_weight_scale` and perhaps `_weight_zero_point` [outputs, groups].
The header of the file says for each tensor which class it is, and the block of numbers that share a scale.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import CheckpointError
from model.files import open_files
from model.format import Format
from model.formats.affine import SCALES, Affine, Parts
from model.formats.keeping import keeping
from model.formats.packed_source import PackedSource, expect, rows_of
from model.source import Source

_READ = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
_LEAVES = ("qdata", "scale", "zero_point", "act_quant_scale")


def _opened(path: Path) -> PackedSource:
    source = open_files(path)
    matrices, hidden = {}, set()
    for name, facts in _described(source).items():
        kind = facts.get("_type")
        if kind == "Tensor":
            continue
        if kind not in _READ:
            raise CheckpointError(
                f"{name} is torchao's {kind}, only {' and '.join(_READ)} are read; serve the float folder with --quant"
            )
        path_, _, leaf = name.rpartition(".")
        prefix = f"{path_}._{leaf}_"
        matrices[name] = _matrix(source, name, prefix, facts.get("_data"))
        hidden |= {prefix + own for own in _LEAVES}
    return PackedSource(source, matrices, hidden)


def _described(source: Source) -> dict[str, dict[str, Any]]:
    """Tensor name → what the headers say of it. Raises CheckpointError for headers that say nothing."""
    found: dict[str, dict[str, Any]] = {}
    for path in source.files:
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
            names = json.loads(header["tensor_names"])
            found |= {name: json.loads(header[name]) for name in names}
        except KeyError as error:
            raise CheckpointError(f"{path.name}: its header does not describe torchao's tensors: no {error}") from None
        except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path.name}: its header does not describe torchao's tensors ({error!r})") from None
    if wrong := next((name for name, facts in found.items() if not isinstance(facts, dict)), None):
        raise CheckpointError(f"{wrong} is described as {found[wrong]!r}, no object")
    return found


def _matrix(source: Source, name: str, prefix: str, facts: Any) -> Affine:
    """A matrix of int8 codes; `facts` are the fields of its class."""
    qdata, scale, zero = (prefix + leaf for leaf in _LEAVES[:3])
    shape = source.entries.get(qdata, ((),))[0]
    block: Any = facts.get("block_size") if isinstance(facts, dict) else None
    whole = isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    if len(shape) != 2 or not whole or block[0] != 1 or shape[1] % block[1]:
        raise CheckpointError(
            f"{name}: {qdata} has shape {list(shape)}, which blocks of {block} do not divide into rows"
        )
    expect(source, qdata, shape, dtypes=(torch.int8,))
    groups = (shape[0], shape[1] // block[1])
    expect(source, scale, groups, dtypes=SCALES)
    if zero in source.entries:
        expect(source, zero, groups, dtypes=(torch.int8,))
    if f"{prefix}act_pre_scale" in source.entries:
        raise CheckpointError(f"{prefix}act_pre_scale scales inputs, which is not read")
    bits = _bits(facts)
    parts = Parts(
        partial(_codes, source, qdata, bits),
        partial(rows_of, source, scale),
        partial(rows_of, source, zero) if zero in source.entries else None,
    )
    scheme = keeping(bits, shape[1], 0 if block[1] == shape[1] else block[1])
    return Affine((shape[0], shape[1]), f"{bits}-bit codes", parts, scheme)


def _codes(source: Source, name: str, bits: int, start: int, count: int) -> Tensor:
    """int8 codes [count, inputs]. Raises CheckpointError for codes that need more bits than the class has."""
    codes = rows_of(source, name, start, count)
    if bits == 4 and bool(((codes < -8) | (codes > 7)).any()):
        raise CheckpointError(f"{name} has codes beyond 4 bits")
    return codes


def _bits(facts: dict[str, Any]) -> int:
    """The bits of the codes, which are int8 in the file."""
    target = facts.get("target_dtype")
    data = target.get("_data") if isinstance(target, dict) else "int8"
    return 4 if data == "int4" else 8


def _note(path: Path) -> str:
    described = _described(open_files(path)).values()
    data = [facts.get("_data") for facts in described]
    keys = ("act_quant_kwargs", "activation_quantization")
    quantizes = any(isinstance(own, dict) and any(own.get(key) for key in keys) for own in data)
    return "the folder's quantization of activations is left out" if quantizes else ""


FORMAT = Format(
    "torchao", lambda path, quantization: quantization.get("quant_method") == "torchao", _opened, note=_note
)
