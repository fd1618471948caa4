"""A model loaded for serving: network, cache and runner, as large as the configuration says."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.runner import Runner
from model.adapters.base import Base
from model.attention import KVCache
from model.checkpoint import Checkpoint, Progress, load
from model.config import CheckpointError
from model.parallel import ALONE, Ranks
from model.synthetic import invented
from quant.vectors import kept_dtype

# Tokens of a context, and of a span, that there is room for unless a smaller cache is asked for.
LONGEST_CONTEXT = 4096
DEFAULT_GB = 0.5


@dataclass(frozen=True, slots=True)
class Loaded:
    """`longest` is the most tokens of a context and of a span that are sure to fit into the cache's blocks."""

    checkpoint: Checkpoint
    runner: Runner
    num_blocks: int
    longest: int
    device: str

    def longest_behind(self, prefix: int) -> int:
        """The same behind a prefix of so many tokens. Raises CheckpointError where it leaves no room."""
        size = self.runner.cache.block_size
        longest = min(self.longest, fitting(self.num_blocks - -(-prefix // size) - 1, size)) if prefix else self.longest
        if longest < size:
            total = self.num_blocks * size
            raise CheckpointError(f"a prefix of {prefix} tokens leaves no room for texts in a cache of {total}")
        return longest


def is_cuda(config: EngineConfig) -> bool:
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def prepare_threads(config: EngineConfig, local_size: int = 1) -> None:
    """Threads of this process: what the configuration says, else its share of the cores."""
    if config.threads:
        torch.set_num_threads(config.threads)
    elif local_size > 1:
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // local_size, 1))


def load_runner(
    config: EngineConfig,
    checkpoint: Checkpoint | None = None,
    ranks: Ranks = ALONE,
    local_rank: int = 0,
    progress: Progress = lambda done: None,
) -> Loaded:
    """Reads the checkpoint, or this rank's part of it, and makes the cache. Raises CheckpointError,
    ValueError for a kind of cache that there is not."""
    cuda = is_cuda(config)
    device = f"cuda:{local_rank}" if cuda else "cpu"
    path = Path(config.model) if config.model else None
    tokenizer = Path(config.tokenizer) if config.tokenizer else None
    storage = config.quant, device, config.group_size, config.quant_head
    if checkpoint is not None:
        loaded = checkpoint
    elif config.load_format == "dummy":
        loaded = invented(path, *storage, config.preset, tokenizer, ranks)
    else:
        loaded = load(path, *storage, config.preset, tokenizer, ranks, progress)
    model, size = loaded.model, config.block_size
    a = model.architecture
    kept = kept_dtype(config.kv_cache_type, model.dtype)
    token_bytes = KVCache.bytes_per_token(a.num_layers, model.kv_heads, a.head_dim, kept)
    num_blocks = max(int((config.kv_cache_gb or DEFAULT_GB) * 1e9 // (token_bytes * size)), 1)
    longest = min(a.max_sequence_length, fitting(num_blocks, size))
    if config.kv_cache_gb is None:
        longest = min(a.max_sequence_length, max(LONGEST_CONTEXT, longest))
        num_blocks = max(num_blocks, least_blocks(longest, size))
    elif longest < size:
        raise ValueError(
            f"kv_cache_gb: {config.kv_cache_gb:g} hold {num_blocks * size} tokens, "
            f"a context and a span need {least_blocks(size, size) * size} at the least"
        )
    base = Base(model, loaded.family.namings, ranks)
    runner = Runner(model, num_blocks, size, loaded.tokenizer.aliases, config.kv_cache_type, base)
    whole = Loaded(loaded, runner, num_blocks, longest, "cuda" if cuda else "cpu")
    if len(config.adapters) > config.max_adapters:
        raise ValueError(f"{len(config.adapters)} adapters are more than max_adapters, {config.max_adapters}")
    runner.adapters.root = None if config.adapter_root is None else Path(config.adapter_root)
    for number, (_, adapter) in enumerate(config.adapters, 1):
        runner.adapters.read(number, os.path.abspath(adapter))
        prefix = runner.adapters.attach(number).prefix
        whole.longest_behind(0 if prefix is None else len(prefix))
    return whole


def fitting(num_blocks: int, block_size: int) -> int:
    """How long a context and a span, each, are sure to fit into so many blocks: or a request could wait forever."""
    return (num_blocks - 2) * block_size // 2 - 1


def least_blocks(longest: int, block_size: int) -> int:
    """Blocks of a cache that a context and a span of so many tokens are sure to fit into."""
    return 2 * -(-(longest + 1) // block_size) + 2
