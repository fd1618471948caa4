"""LoRA as the peft library writes it: adapter_config.json and tensors `….lora_A.weight` and `….lora_B.weight`.

Sources: peft 0.21, tuners/lora/config.py and layer.py, utils/save_and_load.py.
"""

import math
import re
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.adapters.adapter import Adapter
from model.adapters.files import Tensors
from model.adapters.target import AdapterTarget, Stretch, ends_with, put
from model.config import CheckpointError, Config
from model.parallel import RowLinear
from model.sharding import ShardSpec
from quant.adapted import LowRank
from quant.linear import Weight

_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_[AB])(?:\.default)?\.(weight|bias)")
_BIAS = re.compile(r"(?:base_model\.model\.)?(.+?)(?:\.base_layer)?\.(bias|beta)")
# Options of training that do not change the meaning of the tensors.
_HARMLESS = frozenset({
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "base_fingerprint", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "use_rslora", "bias",
    "lora_bias", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out",
    "init_lora_weights", "eva_config", "runtime_config", "megatron_core", "qalora_group_size", "ensure_weight_tying",
})  # fmt: skip
# Initializations that do not change the base's weights; the others subtract from them.
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
_PATTERN = re.compile(r"[\w.\\^$*+?|()\[\]-]{1,256}")


class _Parts(NamedTuple):
    """A low-rank product's matrices [rank, inputs] and [outputs, rank], and the bias of the second."""

    down: Tensor
    up: Tensor
    bias: Tensor | None


def read_lora(config: Config, tensors: Tensors, target: AdapterTarget) -> Adapter:
    """A LoRA, or this rank's part of it: products of lora_A [rank, inputs] and lora_B [outputs, rank] by path.

    Raises CheckpointError for an option that is not supported, and for tensors that do not fit the base.
    """
    _check(config)
    found, biases = _sorted(config, tensors)
    _check_targets(config, found, target)
    pieces: dict[str, list[LowRank]] = {}
    changes: dict[str, Tensor] = {}
    for path, parts in found.items():
        stretch = target.stretch(path)
        factor = _scale(config, path, len(parts.down))
        _check_shapes(path, parts, stretch, target)
        pieces.setdefault(stretch.path, []).append(_own_piece(stretch, parts, factor, target))
        if parts.bias is not None:
            _add_bias(changes, stretch, parts.bias * factor, target, old=False)
    for path, bias in biases.items():
        place = target.bias(path)
        if place is None or bias.shape != (place.length,):
            raise CheckpointError(
                f"{path}.bias {list(bias.shape)} is not the bias of a linear layer or a norm of this model"
            )
        _add_bias(changes, place, bias, target, old=True)
    for path, own in pieces.items():
        ordered = sorted(own, key=lambda piece: piece.first)
        if any(a.last > b.first for a, b in pairwise(ordered)):
            raise CheckpointError(f"{path} is there twice")
    return Adapter(
        {path: tuple(own) for path, own in pieces.items()},
        {path: put(change, target.model) for path, change in changes.items()},
    )


def _check(config: Config) -> None:
    """Raises CheckpointError for an option that changes the network in another way than a LoRA."""
    for name, value in config.fields.items():
        if name not in _HARMLESS and value not in (None, False, [], {}, ""):
            raise CheckpointError(f"{config.source}: {name} is not supported")
    start = config.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in _KEEPS_BASE:
        raise CheckpointError(
            f"{config.source}: init_lora_weights {start!r} is not supported: it changes the base's weights too"
        )
    config.only("bias", "none", "all", "lora_only")


def _sorted(config: Config, tensors: Tensors) -> tuple[dict[str, _Parts], dict[str, Tensor]]:
    """The low-rank products and the biases of a file, each by its path. Raises CheckpointError for other tensors."""
    matrices: dict[str, dict[str, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for name in tensors.names:
        if match := _TENSOR.fullmatch(name):
            path, kind, leaf = match.groups()
            matrices.setdefault(path, {})[f"{kind}.{leaf}"] = tensors.read(name)
        elif (match := _BIAS.fullmatch(name)) and config.get("bias", "none") != "none" and "lora_" not in name:
            biases[match[1]] = tensors.read(name)
        elif name.endswith(".base_layer.weight"):
            continue  # the base's own tensor, which peft writes beside a head's low-rank product
        else:
            raise CheckpointError(f"{tensors.source}: {name} is not supported")
    found = {}
    for path, own in matrices.items():
        for needed in ("lora_A.weight", "lora_B.weight"):
            if needed not in own:
                raise CheckpointError(f"{tensors.source}: {path} lacks {needed}")
        found[path] = _Parts(own["lora_A.weight"], own["lora_B.weight"], own.get("lora_B.bias"))
    if not found:
        raise CheckpointError(f"{tensors.source}: holds no lora_A and lora_B")
    return found, biases


def _check_targets(config: Config, found: dict[str, _Parts], target: AdapterTarget) -> None:
    """Raises CheckpointError for a module of the model that the configuration names and the file has nothing of.

    A name that the model does not have is ignored, as in peft. A string is a regular expression, or all-linear: there
    the tensors say which modules it meant, as they do where modules are excluded.
    """
    targets = config.get("target_modules", [])
    if not isinstance(targets, str | list) or not all(isinstance(name, str) for name in targets):
        raise CheckpointError(f"{config.source}: target_modules must be a string or a list of strings")
    if isinstance(targets, str) or config.get("exclude_modules"):
        return
    for name in targets:
        if not any(ends_with(path, name) for path in found) and target.called(name, found):
            raise CheckpointError(f"{config.source}: target_modules: {name} has no tensors in the file")


def _scale(config: Config, path: str, rank: int) -> float:
    """The factor of a product. It also checks the rank."""
    expected = _by_pattern(config, "rank_pattern", path, config.get("r", 8))
    if rank != expected:
        raise CheckpointError(f"{path}: lora_A has rank {rank}, {config.source} says {expected}")
    alpha = _by_pattern(config, "alpha_pattern", path, config.get("lora_alpha", 8), least=-(2.0**31))
    return alpha / (math.sqrt(rank) if config.get("use_rslora", False) else rank)


def _by_pattern(config: Config, field: str, path: str, default: Any, least: float = 0) -> float:
    """peft's own rule (utils/other.py, get_pattern_key): the first pattern that matches the end of a path. Raises
    CheckpointError for what is no number above `least`."""
    patterns = config.get(field, {})
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{config.source}: {field} must be an object")
    value = default
    for pattern, own in patterns.items():
        if _matches(config, field, pattern, path):
            value = own
            break
    if not isinstance(value, int | float) or isinstance(value, bool) or not least < value < 2**31:
        needed = "number" if least else "positive number"
        raise CheckpointError(f"{config.source}: {field} has {value!r}, a {needed} is needed")
    return value


def _matches(config: Config, field: str, pattern: str, path: str) -> bool:
    # A stranger's file may hold a pattern that takes for ever to match.
    loops = sum(pattern.count(sign) for sign in "*+")
    if not _PATTERN.fullmatch(pattern) or re.search(r"\)[*+?]", pattern) or loops > 3 or len(path) > 200:
        raise CheckpointError(f"{config.source}: {field}: the pattern {pattern[:80]!r} is not supported")
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error as error:
        raise CheckpointError(f"{config.source}: {field}: {pattern[:80]!r} is no pattern ({error})") from None


def _check_shapes(path: str, parts: _Parts, stretch: Stretch, target: AdapterTarget) -> None:
    inputs = target.linears[stretch.path][1]
    rank = len(parts.down) if parts.down.dim() == 2 else 0
    for name, tensor, shape in (
        ("lora_A", parts.down, (rank, inputs)),
        ("lora_B", parts.up, (stretch.length, rank)),
        ("lora_B.bias", parts.bias, (stretch.length,)),
    ):
        if tensor is not None and (tensor.shape != shape or not rank):
            raise CheckpointError(f"{path}.{name} is {list(tensor.shape)}, this model needs {[*shape]}")


def _own_piece(stretch: Stretch, parts: _Parts, factor: float, target: AdapterTarget) -> LowRank:
    """This rank's part of a product: rows of `up` if the matrix's outputs are divided, else inputs of `down`."""
    down, up = parts.down.float(), parts.up.float() * factor
    cut, first = target.cut(stretch.path, "weight"), stretch.start
    if cut is not None and cut.dim == 1:
        down = target.own(cut, target.linears[stretch.path][1]).of(down)
    elif cut is not None:
        first, lines = _within(stretch, target, cut)
        up = up[lines]
    return LowRank(put(down, target.model), put(up.t(), target.model), first)


def _within(stretch: Stretch, target: AdapterTarget, cut: ShardSpec) -> tuple[int, Tensor]:
    """Where a stretch begins in this rank's rows, and which of the stretch's rows are there."""
    part = target.own(cut, stretch.whole)
    before = part.within(0, stretch.start).length
    spans = part.within(stretch.start, stretch.length).spans
    return before, torch.cat([torch.arange(start, start + length) for start, length in spans])


def _add_bias(changes: dict[str, Tensor], stretch: Stretch, bias: Tensor, target: AdapterTarget, old: bool) -> None:
    """Adds a bias to the changes of a layer's own bias, or with `old` the difference to that one."""
    module = target.model.get_submodule(stretch.path)
    cut, first, own = target.cut(stretch.path, "bias"), stretch.start, bias.float()
    if isinstance(module, RowLinear) and target.ranks.rank > 0:
        return  # the ranks sum the outputs, so only the first adds the bias
    if cut is not None:
        first, lines = _within(stretch, target, cut)
        own = own[lines]
    mine: Tensor | None = getattr(module, "bias", None)
    size = module.out_features if isinstance(module, Weight) else len(bias)
    change = changes.setdefault(stretch.path, torch.zeros(size))
    change[first : first + len(own)] += own
    if old and mine is not None:
        change[first : first + len(own)] -= mine[first : first + len(own)].float().cpu()
