"""The configuration of an engine: its options with all choices made. Does not import torch."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from engine.options import Count, EngineOptions


class EngineConfig(EngineOptions):
    """The options of an engine, and the values that the program chooses for it.

    `block_size` is the number of tokens in a cache block. `threads` is the number of threads of each process; None is
    its share of the cores.
    """

    tp: Annotated[int, Field(ge=1)] = 1
    block_size: Count = 16
    threads: Count | None = None

    def __init__(self, model: Path | str | None = None, **options: Any) -> None:
        """Raises ValidationError for an option that there is not, or a value out of its bounds."""
        super().__init__(model=model, **options)

    @classmethod
    def of(cls, options: EngineOptions, **chosen: Any) -> Self:
        """The configuration of these options. Values in `chosen`, by name, replace them."""
        given = {name: getattr(options, name) for name in EngineOptions.model_fields}
        root = options.adapter_root
        settled = {"tp": options.tp or 1, "adapter_root": None if root is None else root.absolute()}
        return cls(**given | settled | chosen)
