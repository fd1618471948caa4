"""What is scheduled: a context (part A), encoded once, and sequences (part B) over it."""

from dataclasses import dataclass, field
from typing import Literal

Output = Literal["token", "scores", "pair", "logits"]
Status = Literal["new", "waiting", "running", "finished"]


@dataclass(slots=True, eq=False)
class Prefix:
    """An adapter's `length` tokens before every context; `shift` is added to the positions of all that follow.

    All contexts behind it share the blocks that it fills; what is over of it begins each one's own first block.
    `blocks` is None while it is not in the cache. `running` counts the running sequences behind it.
    """

    adapter: int
    length: int
    shift: int = 0
    blocks: tuple[int, ...] | None = None
    running: int = 0


Key = tuple[str, int, tuple[int, ...]]  # tenant, adapter, tokens


@dataclass(slots=True, eq=False, weakref_slot=True)
class Context:
    """Part A of one or many sequences of a tenant, as an adapter reads it. `blocks`, those of its prefix first, is None
    until the context is encoded in the cache; `used` tells which of two was used last."""

    token_ids: tuple[int, ...]
    blocks: tuple[int, ...] | None = None
    tenant: str = ""
    adapter: int = 0
    prefix: Prefix | None = None
    used: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.tenant, self.adapter, self.token_ids

    @property
    def start(self) -> int:
        """The slot of its first token."""
        return self.prefix.length if self.prefix is not None else 0


@dataclass(slots=True, eq=False)
class Sequence:
    """Rows of part B over a context: some computed, the rest waiting to be.

    Its `output` is the log-probabilities of what follows its last row ("token"), the same and by how much the logits
    are greater ("logits"), those of `targets`, one per row, −1 for none ("scores"), or of its two sentences being
    neighbours ("pair"). One that is `whole` has an empty context, and all its rows see each other (a masked language
    model's text); its "token" is what stands at each of the `logit_rows`. `context_blocks` are the context's blocks
    that it shares, `blocks` its own; both are empty while it waits.
    `answered` counts the rows it had when it last ran: one without new ones waits for others of its job, and if it is
    preempted meanwhile it is not computed again before there are. `drawn_at` is when its last token was drawn, on the
    monotonic clock. `prompt_tokens` are to be counted when it first runs: each prompt's by one sequence.

    `job_id` names the request that it runs for, `owner` is what takes its results within that request's job. The
    scheduler alone sets `status`: one that is finished has no blocks and does not run again.
    """

    context: Context
    output: Output
    rank: float  # smaller goes first; see Scheduler.add
    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    block_positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    whole: bool = False
    logit_rows: tuple[int, ...] = (-1,)
    computed: int = 0
    answered: int = 0
    context_blocks: tuple[int, ...] = ()
    blocks: list[int] = field(default_factory=list)
    status: Status = "new"
    owner: object = None
    job_id: str = ""
    drawn_at: float | None = None
    prompt_tokens: int = 0

    def push(self, token_id: int, position: int, block_position: int) -> None:
        """Adds a row to be computed."""
        self.token_ids.append(token_id)
        self.positions.append(position)
        self.block_positions.append(block_position)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing new to ask it."""
        return self.answered == len(self.token_ids)

    @property
    def pending(self) -> int:
        """Rows not computed yet."""
        return len(self.token_ids) - self.computed
