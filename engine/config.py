"""The configuration of an engine: its options, all of them settled. Does not import torch."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field

from engine.options import Count, EngineOptions


class EngineConfig(EngineOptions):
    """What an engine is started with: its options, and what the program chooses for it.

    `block_size` is the number of tokens in a cache block. `threads` are those of each process, None its share of the
    cores.
    """

    tp: Annotated[int, Field(ge=1)] = 1
    block_size: Count = 16
    threads: Count | None = None

    def __init__(self, model: Path | str | None = None, **options: Any) -> None:
        """Raises ValidationError for an option that there is not, or a value out of its bounds."""
        super().__init__(model=model, **options)

    @classmethod
    def of(cls, options: EngineOptions, **chosen: Any) -> Self:
        """The configuration that options ask for; what is `chosen`, by name, goes before them."""
        given = {name: getattr(options, name) for name in EngineOptions.model_fields}
        root = options.adapter_root
        settled = {"tp": options.tp or 1, "adapter_root": None if root is None else root.absolute()}
        return cls(**given | settled | chosen)
