"""A deployment: a model with its storage, on devices of which each is a rank."""

from dataclasses import dataclass

import torch

from engine.config import EngineConfig
from engine.loading import LONGEST_CONTEXT
from engine.planning.cards import Card
from model.architecture import Architecture
from model.checkpoint import matrix_dtype
from model.storage import Storage
from quant.scheme import HeadScheme, Scheme

_DEFAULT = EngineConfig()


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model with its storage and devices.

    `kv_cache_type` is one of `quant.cache_tensor.KINDS`. `request_tokens` is the number of tokens of a full-length
    request, context and fills together; None is the model's limit, at most 4096, for which the engine always has room.
    `floats` is the dtype of float matrices in the model's files.
    """

    architecture: Architecture
    storage: Storage
    devices: tuple[Card, ...]
    kv_cache_type: str = "auto"
    request_tokens: int | None = None
    max_batch_tokens: int = _DEFAULT.max_batch_tokens
    block_size: int = _DEFAULT.block_size
    floats: torch.dtype = torch.float32

    @property
    def ranks(self) -> int:
        """Number of devices."""
        return len(self.devices)

    def schemes(self, kind: str) -> tuple[Scheme, HeadScheme]:
        """The schemes of the blocks' matrices and of the head on a device type. Raises UsageError for unknown ones."""
        return self.storage.schemes(matrix_dtype(kind, self.floats), kind)

    @property
    def tokens(self) -> int:
        """Number of tokens of a full-length request."""
        return self.request_tokens or min(self.architecture.max_sequence_length, LONGEST_CONTEXT)

    @property
    def request_blocks(self) -> int:
        """Number of cache blocks of a full-length request. Fills begin at a block border, which can cost one block."""
        return -(-self.tokens // self.block_size) + 1

    @property
    def largest_step(self) -> int:
        """Number of rows of the largest iteration. A context is never cut, whatever its length."""
        return max(self.max_batch_tokens, self.tokens)
