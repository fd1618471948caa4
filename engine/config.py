"""What an engine is started with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`model` is a checkpoint folder, None the bundled demo; `kv_cache_gb` is 10⁹ bytes of keys and values."""

    model: str | None = None
    quant: str = "none"
    device: str = "auto"
    kv_cache_gb: float = 0.5
    max_batch_tokens: int = 2048
    block_size: int = 16
    threads: int | None = None
