"""An adapter, read: what it changes of a network, or of a rank's part of one."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from quant.adapted import LowRank


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values [layers, tokens, kv_heads, head_dim] before every text, seen by all its rows.

    They are used as they are, without positions. `shift` is added to the positions of all tokens.
    """

    keys: Tensor
    values: Tensor
    shift: int = 0

    def __len__(self) -> int:
        return self.keys.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """By path of a layer its low-rank products and what is added to its bias; or a prefix."""

    pieces: dict[str, tuple[LowRank, ...]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    prefix: Prefix | None = None

    @property
    def kind(self) -> Literal["lora", "prefix"]:
        return "lora" if self.prefix is None else "prefix"
