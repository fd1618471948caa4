"""What a scheme is: how a linear layer's weight is stored, and how rows are multiplied with it.

Every scheme keeps one promise for layers of 16 features and more: an output row depends on its own input row only,
bit for bit, however many rows share the call. A request then gets the same numbers alone and in a batch of 64. The two
of bitsandbytes are exempt: llm-int8 everywhere, nf4 on a GPU.

A weight passes through three forms: float [out_features, in_features]; *stored*, as a checkpoint file has it (`tensors`
tells names, shapes and dtypes); *packed*, as this machine's kernels read it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from quant.scheme_facts import SchemeFacts

Tensors = dict[str, Tensor]
Stored = dict[str, tuple[tuple[int, ...], torch.dtype]]
Narrowing = tuple[int, int, int]  # dim, start, length, as `Tensor.narrow` takes them
ReduceMax = Callable[[Tensor], Tensor]  # the elementwise maximum over the ranks that share the same rows

SPREAD = 0.02  # the standard deviation that a network's weights are initialized with


def identity(x: Tensor) -> Tensor:
    """`ReduceMax` for a weight with all its inputs."""
    return x


def num_bytes(tensors: Stored) -> int:
    """The bytes of tensors of these shapes and dtypes."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in tensors.values())


class Scheme(ABC):
    """Storage and matrix product of one kind of weight. `device` is the kind of a device, "cpu" or "cuda"."""

    name: ClassVar[str]
    facts: ClassVar[SchemeFacts]
    group_size: int = 0  # inputs that share a scale, 0 for all of a row

    @classmethod
    @abstractmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        """The scheme with what it takes of these: the dtype of float weights, inputs that share a scale.

        Raises UsageError for a group size that it does not have, and for an optional dependency that is missing.
        """

    @classmethod
    @abstractmethod
    def kernels(cls) -> str:
        """One line for people: what computes its products on this machine's CPU, or what is missing for that."""

    @abstractmethod
    def tensors(self, out_features: int, in_features: int) -> Stored:
        """Name → (shape, dtype) of a stored weight. Raises UsageError for sizes that the scheme cannot hold."""

    @abstractmethod
    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        """The stored form of a float weight. Raises UsageError for NaN, infinity or sizes that do not fit.

        Where the weight has only some inputs of its rows, `reduce_max` makes scales of whole rows those of the whole.
        """

    @abstractmethod
    def dequantize(self, stored: Tensors) -> Tensor:
        """The float32 weight [out_features, in_features] that the stored form stands for."""

    @abstractmethod
    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        """A stored weight of random numbers, made without a float copy: codes of middling size stand for `SPREAD`."""

    @abstractmethod
    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        """How a stored tensor is narrowed when the weight is, None for not at all.

        dim 0 are outputs, 1 inputs. Raises UsageError for a border inside what is stored as one.
        """

    @abstractmethod
    def pack(self, stored: Tensors) -> Tensors:
        """The packed form, on the device of the stored one."""

    @abstractmethod
    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        """The bytes of the packed form on a device, on a CPU as this machine's kernels read it."""

    @abstractmethod
    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        """x [..., in_features] → [..., out_features] in x's dtype."""

    def activation_bits(self, device: str) -> int:
        """The bits of an input when it is multiplied: those of a float unless the scheme makes codes of inputs."""
        return 16 if device == "cuda" else 32

    def activation_bytes(self, in_features: int, device: str) -> int:
        """The bytes of the codes and scales that a product makes of one row of inputs."""
        return 0

    def copies_weight(self, capability: float | None, rows: int) -> bool:
        """Whether a product of so many rows makes float copies of the weight, some outputs at a time, on a GPU of this
        compute capability (None: on a CPU)."""
        return False


class HeadScheme(Scheme):
    """A scheme of the embedding and head: its rows can be read one by one."""

    @abstractmethod
    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        """Chosen rows of the weight, [..., in_features] for an index [...]."""

    def check_head(self, device: str) -> None:
        """Raises UsageError where this machine cannot read rows on the device."""


class IntegerScheme(Scheme):
    """A scheme of integer codes, each of which stands for code × scale; stored as "weight" and "weight_scale"."""

    scale_dtype: ClassVar[torch.dtype]

    @property
    @abstractmethod
    def code_range(self) -> tuple[int, int]:
        """The lowest and the highest code."""

    @abstractmethod
    def scales(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensor:
        """The scales [out_features, groups] of a float weight, as they are stored. Raises UsageError for a weight that
        is too large for them."""

    @abstractmethod
    def stored(self, codes: Tensor, scales: Tensor) -> Tensors:
        """The stored form of codes int8 [out_features, in_features] with scales [out_features, groups]."""

    @abstractmethod
    def codes(self, weight: Tensor) -> Tensor:
        """The codes int8 [out_features, in_features] of the stored tensor "weight"."""

    @abstractmethod
    def grouped_by(self, spans: list[int]) -> "IntegerScheme | None":
        """The scheme, of as many bits, that holds one scale for stretches of so many inputs; None if there is none."""
