"""A model loaded for serving: network, cache and runner, in the sizes of the configuration."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from engine.config import EngineConfig
from engine.free_memory import free_bytes
from engine.runner import Runner
from model.adapters.target import AdapterTarget
from model.attention import KVCache
from model.checkpoint import Checkpoint, Progress, load
from model.config import CheckpointError
from model.parallel import ALONE, Ranks
from model.random_weights import invented
from quant.cache_tensor import kept_dtype
from quant.memory import is_out_of_memory
from quant.usage import UsageError

# A cache of the default size holds a context and a span of so many tokens each.
LONGEST_CONTEXT = 4096
DEFAULT_GB = 0.5
# Share of free memory for a proposed smaller cache; a step needs some memory too.
SPARED = 0.9


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model. A context and a span of up to `longest` tokens each always fit into the cache."""

    checkpoint: Checkpoint
    runner: Runner
    num_blocks: int
    longest: int
    device: str

    def longest_behind(self, prefix: int) -> int:
        """`longest` for contexts behind a prefix of this many tokens. Raises CheckpointError if the prefix leaves no
        room."""
        size = self.runner.cache.block_size
        longest = min(self.longest, fitting(self.num_blocks - -(-prefix // size) - 1, size)) if prefix else self.longest
        if longest < size:
            total = self.num_blocks * size
            raise CheckpointError(f"a prefix of {prefix} tokens leaves no room for texts in a cache of {total}")
        return longest


def is_cuda(config: EngineConfig) -> bool:
    """Whether the configuration names a CUDA device."""
    return config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())


def prepare(config: EngineConfig, local_size: int = 1) -> None:
    """Checks the devices of this machine's ranks, and sets this process's number of threads.

    That is the configured number, or its share of the cores. Raises UsageError for fewer CUDA devices than ranks.
    """
    if is_cuda(config):
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not devices:
            raise UsageError("no CUDA device that torch can use; --device cpu serves without one")
        if local_size > devices:
            raise UsageError(f"{local_size} ranks need a GPU each, this machine has {devices}; --tp {devices} fits")
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
    """Reads the checkpoint, or this rank's part of it, and allocates the cache.

    Raises CheckpointError for a checkpoint or adapter that cannot be used; raises UsageError for a cache that is too
    small for any text, and if memory does not suffice.
    """
    device = f"cuda:{local_rank}" if is_cuda(config) else "cpu"
    if checkpoint is None:
        checkpoint = _checkpoint(config, device, ranks, progress)
    model, size = checkpoint.model, config.block_size
    a = model.architecture
    token_bytes = KVCache.bytes_per_token(
        a.num_layers, model.kv_heads, a.head_dim, kept_dtype(config.kv_cache_type, model.dtype)
    )
    num_blocks, longest = _cache_size(config, a.max_sequence_length, token_bytes)
    cache_bytes, least_bytes = num_blocks * size * token_bytes, least_blocks(size, size) * size * token_bytes
    target = AdapterTarget(model, checkpoint.family.namings, ranks)
    with _in_memory(device, partial(_no_room, cache_bytes, least_bytes)) as free:
        # A CPU's memory is allocated on first write, too late for an error message.
        if device == "cpu" and free is not None and cache_bytes > free:
            raise MemoryError
        runner = Runner(model, num_blocks, size, checkpoint.tokenizer.aliases, config.kv_cache_type, target)
    loaded = Loaded(checkpoint, runner, num_blocks, longest, "cuda" if is_cuda(config) else "cpu")
    _read_adapters(config, loaded)
    return loaded


def _checkpoint(config: EngineConfig, device: str, ranks: Ranks, progress: Progress) -> Checkpoint:
    storage = config.quant, device, config.group_size, config.quant_head
    with _in_memory(device, _weights_too_large):
        if config.load_format == "dummy":
            return invented(config.model, *storage, config.preset, config.tokenizer, ranks)
        return load(config.model, *storage, config.preset, config.tokenizer, ranks, progress)


def _cache_size(config: EngineConfig, limit: int, token_bytes: int) -> tuple[int, int]:
    """The cache's blocks, and the longest context and span that are sure to fit into them; `limit` is the model's.

    Raises UsageError for a cache that is too small for any.
    """
    size = config.block_size
    num_blocks = max(int((config.kv_cache_gb or DEFAULT_GB) * 1e9 // (token_bytes * size)), 1)
    longest = min(limit, fitting(num_blocks, size))
    if config.kv_cache_gb is None:
        longest = min(limit, max(LONGEST_CONTEXT, longest))
        num_blocks = max(num_blocks, least_blocks(longest, size))
    elif longest < size:
        raise UsageError(
            f"kv_cache_gb: {config.kv_cache_gb:g} hold {num_blocks * size} tokens, "
            f"a context and a span need {least_blocks(size, size) * size} at the least"
        )
    return num_blocks, longest


def _read_adapters(config: EngineConfig, loaded: Loaded) -> None:
    """Reads the configuration's adapters. Raises CheckpointError, and UsageError for more than there may be."""
    if len(config.adapters) > config.max_adapters:
        raise UsageError(f"{len(config.adapters)} adapters are more than max_adapters, {config.max_adapters}")
    adapters = loaded.runner.adapters
    adapters.root = config.adapter_root
    for number, folder in enumerate(config.adapters.values(), 1):
        adapters.read(number, os.path.abspath(folder))
        prefix = adapters.attach(number).prefix
        loaded.longest_behind(0 if prefix is None else len(prefix))


@contextmanager
def _in_memory(device: str, told: Callable[[int | None], str]) -> Iterator[int | None]:
    """A context that yields the free bytes of a device.

    Raises UsageError, with the text of `told`, if memory runs out in it.
    """
    free = free_on(device)
    try:
        yield free
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UsageError(f"out of memory: {told(free)}") from None


def free_on(device: str) -> int | None:
    """Bytes of a device's memory that this process may still take; None if unknown."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else free_bytes()


def _weights_too_large(free: int | None) -> str:
    return f"the weights need more than the {_gb(free)} that were free; `glm-infill plan` tells how much"


def _no_room(asked: int, least: int, free: int | None) -> str:
    """`least` are the bytes of the smallest cache of use."""
    message = f"{_gb(asked)} of KV cache do not fit; {_gb(free)} are free"
    fits = 0 if free is None else int(SPARED * free / 1e8) / 10
    return f"{message}; --kv-cache-gb {fits:g} fits" if fits * 1e9 >= max(least, 1) else message


def _gb(num_bytes: int | None) -> str:
    return "an unknown number of GB" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"


def fitting(num_blocks: int, block_size: int) -> int:
    """The length in tokens of a context and a span, each, that always fit into so many blocks.

    A longer request could wait for ever.
    """
    return (num_blocks - 2) * block_size // 2 - 1


def least_blocks(longest: int, block_size: int) -> int:
    """Number of cache blocks into which a context and a span of these tokens always fit."""
    return 2 * -(-(longest + 1) // block_size) + 2
