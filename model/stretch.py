"""A stretch of rotary positions, by which a model reads longer texts than those of its training."""

import math
from dataclasses import dataclass

from model.config import CheckpointError, Config


@dataclass(frozen=True, slots=True)
class Stretch:
    """Position interpolation (arXiv 2306.15595), or YaRN (arXiv 2309.00071) if `turns` are given.

    Interpolation divides every frequency by `factor`. YaRN keeps the pairs that turn more than `turns[0]` times within
    `original_length` positions, divides those that turn less than `turns[1]` times, and blends in between. The blend
    begins and ends at a whole pair if `whole_pairs`. `amplitude` multiplies cosines and sines.
    """

    factor: float
    turns: tuple[float, float] | None = None
    original_length: int = 0  # positions
    whole_pairs: bool = True
    amplitude: float = 1.0

    def blend(self, size: int, base: float) -> tuple[float, float]:
        """The pairs of `size` numbers, counted from 0, at which YaRN's blend begins and ends."""
        assert self.turns is not None
        fast, slow = (math.log(self.original_length / (turns * math.tau)) for turns in self.turns)
        pairs = size / 2 / math.log(base)
        first, last = fast * pairs, slow * pairs
        if self.whole_pairs:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, size - 1)
        return first, last + 0.001 if last == first else last


@dataclass(frozen=True, slots=True)
class Turning:
    """Rotary positions from a config.json of transformers.

    `share` is the part of a head's numbers that is rotated; `length` is the number of positions.
    """

    base: float
    share: float
    length: int
    stretch: Stretch | None

    @staticmethod
    def read(config: Config, share: float) -> "Turning":
        """Reads `rope_parameters` (transformers 5) and `rope_scaling` (transformers 4) as transformers 5.24 does.

        If both are there, `rope_scaling` counts. `share` is the family's, for a file without it. A stretched model has
        `factor` times its original length, as in vLLM. Raises CheckpointError for a type other than default, linear and
        yarn, and for a value of a wrong type.
        """
        field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        given = config.get(field, {})
        if not isinstance(given, dict):
            raise CheckpointError(f"{config.source}: {field} must be an object, not {given!r}")
        for name, value in given.items():
            if isinstance(value, dict):
                raise CheckpointError(f"{config.source}: {field} has an object in {name}; all layers must be alike")
        beside = {name: config.fields.get(name) for name in ("rope_theta", "partial_rotary_factor")}
        rope = Config({**beside, **given}, f"{config.source}: {field}")
        length = config.whole("max_position_embeddings")
        kind = rope.get("rope_type", rope.get("type", "default"))
        stretch = None
        if kind == "linear":
            stretch = Stretch(rope.number("factor"))
            length = int(length * stretch.factor)
        elif kind == "yarn":
            stretch = _yarn(config, rope, length)
            length = int(stretch.original_length * stretch.factor)
        elif kind != "default":
            raise CheckpointError(f"{rope.source}: rope_type is {kind!r}, only default, linear and yarn are supported")
        base, share = rope.number("rope_theta", 10000.0), rope.number("partial_rotary_factor", share)
        if base <= 1 or share > 1:
            raise CheckpointError(f"{rope.source}: rope_theta must be above 1, partial_rotary_factor at most 1")
        return Turning(base, share, length, stretch)


def _yarn(config: Config, rope: Config, length: int) -> Stretch:
    # transformers prefers the original length beside the sizes, where some models have it.
    name = "original_max_position_embeddings"
    original = config.whole(name) if config.get(name) is not None else rope.whole(name, length)
    factor = rope.number("factor", length / original if "factor" in rope.fields else None)
    turns = _or(rope, "beta_fast", 32.0), _or(rope, "beta_slow", 1.0)
    scale, scale_all = _or(rope, "mscale", 0.0), _or(rope, "mscale_all_dim", 0.0)
    amplitude = _amplitude(factor, scale) / _amplitude(factor, scale_all) if scale and scale_all else None
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise CheckpointError(f"{rope.source}: truncate must be true or false, not {truncate!r}")
    amplitude = rope.number("attention_factor", _amplitude(factor, 1.0) if amplitude is None else amplitude)
    return Stretch(factor, turns, original, truncate, amplitude)


def _or(rope: Config, name: str, default: float) -> float:
    """A positive number; 0 stands for the default, as in transformers."""
    return rope.number(name) if rope.get(name) else default


def _amplitude(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
