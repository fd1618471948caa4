"""A deployment: a model as it is to be stored, on devices of which each is a rank."""

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.loading import LONGEST_CONTEXT
from engine.planning.cards import Card
from model.architecture import Architecture
from model.checkpoint import compute_dtype
from model.storage import Storage
from quant.scheme import Scheme

_DEFAULT = EngineConfig()


@dataclass(frozen=True, slots=True)
class Deployment:
    """`kv_cache_type` is one of `quant.cache_tensor.KINDS`. `request_tokens` count a full-length request, context
    and fills together; None: the model's limit, or the 4096 that the engine has room for in any case."""

    architecture: Architecture
    storage: Storage
    devices: tuple[Card, ...]
    kv_cache_type: str = "auto"
    request_tokens: int | None = None
    max_batch_tokens: int = _DEFAULT.max_batch_tokens
    block_size: int = _DEFAULT.block_size

    @property
    def ranks(self) -> int:
        return len(self.devices)

    def scheme(self, kind: str) -> Scheme:
        """The scheme of the blocks' matrices on devices of a kind. Raises UsageError for what there is not."""
        return self.storage.schemes(compute_dtype(kind), kind)[0]

    @property
    def tokens(self) -> int:
        """Of a full-length request."""
        return self.request_tokens or min(self.architecture.max_sequence_length, LONGEST_CONTEXT)

    @property
    def request_blocks(self) -> int:
        """Cache blocks of such a request; fills begin at a block border, which can cost a block."""
        return -(-self.tokens // self.block_size) + 1

    @property
    def largest_step(self) -> int:
        """Rows of the largest iteration: a context is never cut, however long."""
        return max(self.max_batch_tokens, self.tokens)
