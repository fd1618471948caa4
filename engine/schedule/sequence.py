"""The scheduled items: a context (part A), encoded once, and sequences (part B) over it."""

from dataclasses import dataclass, field
from typing import Literal

Output = Literal["token", "scores", "pair", "logits", "ranked"]
Status = Literal["new", "waiting", "running", "finished"]


@dataclass(slots=True, eq=False)
class Prefix:
    """An adapter's `length` tokens before every context. `shift` is added to the positions of all later tokens.

    All contexts behind it share its full blocks; the rest of it begins each context's own first block. `blocks` is None
    while it is not cached. `running` counts the running sequences behind it.
    """

    adapter: int
    length: int
    shift: int = 0
    blocks: tuple[int, ...] | None = None
    running: int = 0


Key = tuple[str, int, tuple[int, ...]]  # tenant, adapter, tokens


@dataclass(slots=True, eq=False, weakref_slot=True)
class Context:
    """Part A of one or many sequences of a tenant, read with an adapter or none.

    `blocks`, those of its prefix first, is None until the context is cached. A larger `used` means a later use.
    """

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
        """The key of the context cache."""
        return self.tenant, self.adapter, self.token_ids

    @property
    def start(self) -> int:
        """The slot of its first token."""
        return self.prefix.length if self.prefix is not None else 0


@dataclass(slots=True, eq=False)
class Sequence:
    """Rows of part B over a context: some are computed, the others wait.

    `output` is one of: "token", the log-probabilities of the token after its last row; "logits", the same and the
    number by which logits are greater; "scores", the log-probabilities of `targets`, one per row (−1 for none) and
    further ones of the last row;
    "ranked", the same with their ranks; "pair", those of its two sentences being neighbours. A `whole` sequence (a
    masked language model's text) has an empty context, all its rows see each other, and its "token" is that at each of
    the `logit_rows`. `context_blocks` are the context's blocks that it shares, `blocks` its own; both are empty while
    it waits. `answered` is the number of its rows when it last ran: without new rows it waits for other sequences of
    its job, and if it is preempted, it is computed again only when there are new ones. `drawn_at` is the time of its
    last token on the monotonic clock. `prompt_tokens` count when it first runs, each prompt's in one sequence.
    `to_come` is the number of rows that are known to come behind its own, on it or on its forks.

    `job_id` names its request; `owner` takes its results within that request's job. Only the scheduler sets `status`: a
    finished sequence has no blocks and does not run again.
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
    to_come: int = 0

    def push(self, token_id: int, position: int, block_position: int) -> None:
        """Adds a row to compute."""
        self.token_ids.append(token_id)
        self.positions.append(position)
        self.block_positions.append(block_position)

    @property
    def is_idle(self) -> bool:
        """Whether it has no new rows."""
        return self.answered == len(self.token_ids)

    @property
    def pending(self) -> int:
        """Number of rows that are not computed yet."""
        return len(self.token_ids) - self.computed
