"""AWQ (arXiv 2306.00978) in the layout "gemm" of AutoAWQ, in 4 bits.

A module has `qweight` int32 [inputs, outputs / 8], `qzeros` int32 [groups, outputs / 8] and `scales` [groups, outputs].
A word holds the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight, from the lowest bits on (AutoAWQ, packing_utils.py).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import CheckpointError
from model.files import open_files
from model.format import Format
from model.formats.affine import SCALES, Affine, Parts
from model.formats.bit_words import WORD, covering, unpack
from model.formats.gptq import centred
from model.formats.keeping import keeping
from model.formats.packed_source import PackedSource, columns_of, expect, modules_with
from model.formats.settings import Settings
from model.source import Source

BITS = 4
OLD = "quant_config.json"  # where AutoAWQ writes its settings, if not into config.json
_PLACES = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])  # of the outputs in a word


def _recognises(path: Path, quantization: Mapping[str, Any]) -> bool:
    return quantization.get("quant_method") == "awq" or (not quantization and (path / OLD).exists())


def _opened(path: Path) -> PackedSource:
    settings = Settings.read(path, OLD)
    settings.only("w_bit" if "w_bit" in settings.fields else "bits", BITS)
    settings.one_of("version", "gemm", "GEMM")
    group_size = settings.group_size("q_group_size" if "q_group_size" in settings.fields else "group_size")
    source = open_files(path)
    modules = modules_with(source, "qweight")
    matrices = {f"{module}.weight": _matrix(source, module, group_size) for module in modules}
    return PackedSource(source, matrices, {f"{m}.{leaf}" for m in modules for leaf in ("qweight", "qzeros", "scales")})


def _matrix(source: Source, module: str, group_size: int) -> Affine:
    shape = source.entries[f"{module}.qweight"][0]
    if len(shape) != 2:
        raise CheckpointError(f"{module}.qweight has shape {list(shape)}, expected two dimensions")
    inputs, outputs = shape[0], shape[1] * WORD // BITS
    size = group_size or inputs
    if not size or inputs % size:
        raise CheckpointError(f"{module}.qweight has {inputs} inputs, which groups of {size} do not divide")
    expect(source, f"{module}.qweight", shape, dtypes=(torch.int32,))
    expect(source, f"{module}.qzeros", (inputs // size, shape[1]), dtypes=(torch.int32,))
    expect(source, f"{module}.scales", (inputs // size, outputs), dtypes=SCALES)
    parts = Parts(
        partial(_codes, source, f"{module}.qweight"),
        lambda start, n: columns_of(source, f"{module}.scales", start, n).T,
        partial(_codes, source, f"{module}.qzeros"),
    )
    return Affine((outputs, inputs), "4-bit codes with zeros", parts, keeping(BITS, inputs, group_size))


def _codes(source: Source, name: str, start: int, count: int) -> Tensor:
    """int8 codes [count, inputs or groups], centred."""
    first, number, skipped = covering(start, count, BITS)
    codes = unpack(columns_of(source, name, first, number), BITS)
    ordered = codes.view(len(codes), -1, len(_PLACES))[..., _PLACES].flatten(1)
    return centred(ordered[:, skipped : skipped + count], BITS).T


FORMAT = Format("AWQ", _recognises, _opened)
