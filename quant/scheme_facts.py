"""The facts of a scheme that are known without importing it. Does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchemeFacts:
    """The facts of a scheme, known by its name alone.

    `description` is one line for people. `bits` is the size of a stored number without its scale, 16 for a float.
    `head`: the scheme can store the embedding and head, since single rows can be read. `group_sizes` are the numbers of
    inputs that may share a scale, 0 for all inputs; empty if there is no choice. `group_size` is the one without a
    choice. `calibrates`: `quant.calibrate` can choose its codes. `default_head` is the scheme of the embedding and head
    unless another is asked. `extra` is the optional dependency group that it needs. `published_bits`: the scheme stores
    the weights of GLM-130B and ChatGLM-6B that are published with so many bits and one scale per row.
    """

    description: str
    bits: int
    head: bool = False
    group_sizes: tuple[int, ...] = ()
    group_size: int = 0
    calibrates: bool = False
    default_head: str = "none"
    extra: str | None = None
    published_bits: int | None = None
