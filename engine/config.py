"""What an engine is started with."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`model` is a checkpoint folder, None the bundled demo. `tp` is the number of devices that share it.

    `kv_cache_gb` is 10⁹ bytes of keys and values on each of them, None for half of one or what long requests need. They
    are kept as the model computes or, with `kv_cache_type` "int8", in a byte each with one scale a token and head.
    `threads` are those of each process, None its share of the cores.

    `quant`, `group_size` and `quant_head` (the embedding and head) say how matrices are stored; None is what the
    checkpoint says, or float. `preset` and `tokenizer` (a folder) stand in for a config.json and a tokenizer that the
    folder lacks. `load_format` "dummy" reads no weights: all are invented, to try a machine.

    `adapters` are names and folders of those that are there from the start, `max_adapters` how many there are at most;
    `adapter_root` is the folder below which those lie that are loaded later by a relative path.
    """

    model: str | None = None
    quant: str | None = None
    group_size: int | None = None
    quant_head: str | None = None
    device: str = "auto"
    kv_cache_gb: float | None = None
    kv_cache_type: str = "auto"
    max_batch_tokens: int = 2048
    block_size: int = 16
    threads: int | None = None
    tp: int = 1
    preset: str | None = None
    tokenizer: str | None = None
    load_format: str = "auto"
    adapters: Sequence[Sequence[str]] = ()
    max_adapters: int = 32
    adapter_root: str | None = None
