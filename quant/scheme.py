"""A scheme: how it stores a linear layer's weight, and how it multiplies rows by it.

Every scheme keeps one promise for layers of at least 16 features: an output row depends on its own input row only, bit
for bit, however many rows share the call. So a request gets the same numbers alone and in a batch of 64. The two
schemes of bitsandbytes are exempt: llm-int8 everywhere, nf4 on a GPU.

A weight has three forms: *float* [out_features, in_features]; *stored*, as in a checkpoint file (`tensors` gives names,
shapes and dtypes); *packed*, as this machine's kernels read it.
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
    """x [...] → x: the `ReduceMax` of a weight that has all its inputs on one rank."""
    return x


def num_bytes(tensors: Stored) -> int:
    """Bytes of tensors of these shapes and dtypes."""
    return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in tensors.values())


class Scheme(ABC):
    """Storage and matrix product of one kind of weight. `device` is a device type, "cpu" or "cuda"."""

    name: ClassVar[str]
    facts: ClassVar[SchemeFacts]
    group_size: int = 0  # inputs that share a scale, 0 for all of a row

    @classmethod
    @abstractmethod
    def build(cls, dtype: torch.dtype | None, group_size: int) -> Self:
        """Builds the scheme from what it uses of these: the dtype of float weights, the inputs that share a scale.

        Raises UsageError for an unknown group size and for a missing optional dependency.
        """

    @classmethod
    @abstractmethod
    def kernels(cls) -> str:
        """One line for people: which kernels compute its products on this machine's CPU, or what they lack."""

    @abstractmethod
    def tensors(self, out_features: int, in_features: int) -> Stored:
        """Name → (shape, dtype) of the stored form. Raises UsageError for sizes that the scheme cannot hold."""

    @abstractmethod
    def quantize(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensors:
        """The stored form of a float weight [out_features, in_features].

        If the weight has only this rank's inputs, `reduce_max` takes the maximum over all ranks, so that a row has one
        scale everywhere. Raises UsageError for NaN, infinity and sizes that the scheme cannot hold.
        """

    @abstractmethod
    def dequantize(self, stored: Tensors) -> Tensor:
        """The float32 weight [out_features, in_features] that the stored form stands for."""

    @abstractmethod
    def random(self, out_features: int, in_features: int, generator: torch.Generator) -> Tensors:
        """A random stored weight [out_features, in_features], made without a float copy. Its standard deviation is near
        `SPREAD`."""

    @abstractmethod
    def narrow(self, name: str, dim: int, start: int, length: int) -> Narrowing | None:
        """The stretch of a stored tensor that belongs to a stretch of the weight; None if it is the whole tensor.

        `dim` 0 counts outputs, 1 counts inputs. Raises UsageError for a border inside a byte or a group.
        """

    @abstractmethod
    def pack(self, stored: Tensors) -> Tensors:
        """The packed form of a stored weight (see `tensors`), on the same device."""

    @abstractmethod
    def packed_bytes(self, out_features: int, in_features: int, device: str) -> int:
        """Bytes of the packed form on a device; on a CPU as this machine's kernels read it."""

    @abstractmethod
    def matmul(self, x: Tensor, packed: Mapping[str, Tensor], bias: Tensor | None, out_features: int) -> Tensor:
        """x [..., in_features] → [..., out_features] in x's dtype."""

    def activation_bits(self, device: str) -> int:
        """Bits of an input in the product: those of a float, unless the scheme quantizes inputs."""
        return 16 if device == "cuda" else 32

    def activation_bytes(self, in_features: int, device: str) -> int:
        """Bytes of the codes and scales that a product makes from one row of inputs."""
        return 0

    def copies_weight(self, capability: float | None, rows: int) -> bool:
        """Whether a product of `rows` rows makes float copies of the weight, some outputs at a time.

        `capability` is the compute capability of the GPU; None is a CPU.
        """
        return False


class HeadScheme(Scheme):
    """A scheme that can store the embedding and head: single rows can be read."""

    @abstractmethod
    def rows(self, packed: Mapping[str, Tensor], index: Tensor, in_features: int) -> Tensor:
        """Rows of the weight by `index` [...] → [..., in_features]."""

    def check_head(self, device: str) -> None:
        """Raises UsageError if this machine cannot read rows on the device."""


class IntegerScheme(Scheme):
    """A scheme of integer codes. A code stands for code × scale; tensors are "weight" and "weight_scale"."""

    @property
    @abstractmethod
    def scale_dtype(self) -> torch.dtype:
        """The dtype of the stored scales."""

    @property
    @abstractmethod
    def code_range(self) -> tuple[int, int]:
        """The lowest and the highest code."""

    @abstractmethod
    def scales(self, weight: Tensor, reduce_max: ReduceMax = identity) -> Tensor:
        """The scales [out_features, groups] of a float weight [out_features, in_features], in their stored precision.

        Raises UsageError for a weight whose scales would overflow.
        """

    @abstractmethod
    def stored(self, codes: Tensor, scales: Tensor) -> Tensors:
        """The stored form of codes int8 [out_features, in_features] with scales [out_features, groups]."""

    @abstractmethod
    def codes(self, weight: Tensor) -> Tensor:
        """The codes int8 [out_features, in_features] of the stored tensor "weight"."""

    @abstractmethod
    def grouped_by(self, spans: list[int]) -> "IntegerScheme | None":
        """The scheme of as many bits with one scale for each of these numbers of inputs; None if there is none."""
