"""A model loaded for serving: network, cache and runner, as large as the configuration says."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.runner import Runner
from model.checkpoint import Checkpoint, Progress, load
from model.parallel import ALONE, Ranks

# Tokens of context that there is always room for, however small the cache that was asked for.
LONGEST_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Loaded:
    """`longest` is the most tokens of a context and of a span that are sure to fit into the cache's blocks."""

    checkpoint: Checkpoint
    runner: Runner
    num_blocks: int
    longest: int
    device: str


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
    """Reads the checkpoint, or this rank's part of it, and makes the cache. Raises CheckpointError."""
    cuda = is_cuda(config)
    device = f"cuda:{local_rank}" if cuda else "cpu"
    path = Path(config.model) if config.model else None
    tokenizer = Path(config.tokenizer) if config.tokenizer else None
    loaded = checkpoint or load(
        path,
        config.quant,
        device,
        config.group_size,
        config.quant_head,
        config.preset,
        tokenizer,
        ranks,
        progress,
    )
    model, size = loaded.model, config.block_size
    a = model.architecture
    numbers = 2 * a.num_layers * model.kv_heads * a.head_dim * size
    num_blocks = max(int(config.kv_cache_gb * 1e9 // (numbers * model.dtype.itemsize)), 1)
    # A context and a span at the model's limits must fit, or a request could wait forever.
    longest = min(a.max_sequence_length, max(LONGEST_CONTEXT, (num_blocks - 2) * size // 2 - 1))
    num_blocks = max(num_blocks, 2 * -(-(longest + 1) // size) + 2)
    runner = Runner(model, num_blocks, size, loaded.tokenizer.aliases)
    return Loaded(loaded, runner, num_blocks, longest, "cuda" if cuda else "cpu")
