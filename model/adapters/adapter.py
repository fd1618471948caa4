"""An adapter as read: its changes to a network, or to a rank's part of one."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from quant.adapted import LowRank


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Keys and values [layers, tokens, kv_heads, head_dim] before every text. All rows see them.

    They have no rotary position. `shift` is added to the positions of all tokens of the text.
    """

    keys: Tensor
    values: Tensor
    shift: int = 0

    def __len__(self) -> int:
        return self.keys.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Low-rank products and additions to biases, by path of the layer; or a prefix."""

    pieces: dict[str, tuple[LowRank, ...]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    prefix: Prefix | None = None

    @property
    def kind(self) -> Literal["lora", "prefix"]:
        """The kind that clients see: "prefix" for an adapter with a prefix, else "lora"."""
        return "lora" if self.prefix is None else "prefix"
