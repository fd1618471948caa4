"""What is known of a scheme without importing it. Does not import torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchemeFacts:
    """What is known of a scheme by name alone.

    `description` is one line for people. `bits` are those of a stored number without its scale, 16 for a float.
    `head`: the embedding can be stored so, as rows can be read one by one. `group_sizes` are the numbers of inputs that
    may share a scale, 0 for all of them; empty where there is no choice. `calibrates`: `quant.calibrate` can round to
    its codes. `extra` is the optional dependency group that it needs. `published_bits`: it stores what GLM-130B and
    ChatGLM-6B publish with so many bits and one scale a row.
    """

    description: str
    bits: int
    head: bool = False
    group_sizes: tuple[int, ...] = ()
    calibrates: bool = False
    extra: str | None = None
    published_bits: int | None = None
