"""The messages between a server, its ranks and the replicas of a cluster, as JSON, never as pickle.

Between processes each message is a frame: its length, then its JSON. Decoding raises pydantic's ValidationError for
bytes that are no message.
"""

import struct
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter

from engine.events import AdapterCard, Event, Loss, ModelCard, StepStats
from engine.readings import Piece, Reading
from engine.requests import Fill, Request

HEADER = struct.Struct("!I")
T = TypeVar("T")
BY_KIND = Field(discriminator="kind")  # without it each member of a union is tried
AnyRequest = Annotated[Request, BY_KIND]
AnyEvent = Annotated[Event, BY_KIND]


@dataclass(frozen=True, slots=True)
class Submit:
    """A request. Its events come back under the id."""

    id: str
    request: AnyRequest
    kind: Literal["submit"] = "submit"


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancels a request, since nobody waits for it any more."""

    id: str
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class Tokenize:
    """Like `EngineClient.tokenize`. A `Reply` or `Refused` comes back under the id, also for the messages below."""

    id: str
    text: str
    special: bool = False
    masks: bool = True
    kind: Literal["tokenize"] = "tokenize"


@dataclass(frozen=True, slots=True)
class Detokenize:
    """Like `EngineClient.detokenize`."""

    id: str
    token_ids: list[int]
    special: bool = False
    finished: bool = False
    sentence: bool = False
    kind: Literal["detokenize"] = "detokenize"


@dataclass(frozen=True, slots=True)
class Read:
    """Like `EngineClient.read`."""

    id: str
    fill: Fill
    scored: bool = False
    kind: Literal["read"] = "read"


@dataclass(frozen=True, slots=True)
class Spell:
    """Like `EngineClient.pieces`."""

    id: str
    token_ids: list[int]
    kind: Literal["spell"] = "spell"


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Like `EngineClient.load_adapter`."""

    id: str
    name: str
    path: str
    kind: Literal["load_adapter"] = "load_adapter"


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Like `EngineClient.unload_adapter`."""

    id: str
    name: str
    kind: Literal["unload_adapter"] = "unload_adapter"


@dataclass(frozen=True, slots=True)
class Loading:
    """A rank has read this share of its weights, 0 to 1."""

    done: float
    kind: Literal["loading"] = "loading"


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank is ready. Rank 0 sends the cards of the model and of its first adapters."""

    card: ModelCard | None = None
    adapters: list[AdapterCard] = field(default_factory=list)
    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class NotReady:
    """A rank could not get ready, and ends."""

    detail: str
    kind: Literal["not_ready"] = "not_ready"


@dataclass(frozen=True, slots=True)
class Raised:
    """A rank has raised an exception of this type, and ends."""

    error: str
    kind: Literal["raised"] = "raised"


@dataclass(frozen=True, slots=True)
class Alive:
    """The heartbeat of a rank, with the age of the running step in seconds; 0 if none runs."""

    step_age: float
    kind: Literal["alive"] = "alive"


@dataclass(frozen=True, slots=True)
class Happened:
    """Events of requests, in order."""

    events: list[AnyEvent]
    kind: Literal["happened"] = "happened"


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step has run."""

    stats: StepStats
    kind: Literal["stepped"] = "stepped"


@dataclass(frozen=True, slots=True)
class AdaptersChanged:
    """The adapters that are loaded now."""

    adapters: list[AdapterCard]
    kind: Literal["adapters_changed"] = "adapters_changed"


Value = list[int] | list[Reading] | list[Piece] | str | AdapterCard | None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to the question with this id."""

    id: str
    value: Value = None
    kind: Literal["reply"] = "reply"


@dataclass(frozen=True, slots=True)
class Refused:
    """The refusal of the question with this id: the fields of a `RequestError`."""

    id: str
    message: str
    param: str | None = None
    code: str = "invalid_value"
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A replica is not ready for the question."""

    id: str
    detail: str
    kind: Literal["unavailable"] = "unavailable"


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a replica, and its losses and steps since the last report."""

    ready: bool
    detail: str
    ranks_alive: int
    card: ModelCard
    adapters: list[AdapterCard]
    losses: list[Loss]
    stats: list[StepStats]
    kind: Literal["report"] = "report"


TextQuestion = Tokenize | Detokenize | Read | Spell
Question = TextQuestion | LoadAdapter | UnloadAdapter
ToRank = Annotated[Submit | Cancel | Question, BY_KIND]
Answer = Reply | Refused
FromRank = Annotated[
    Loading | Ready | NotReady | Raised | Alive | Happened | Stepped | AdaptersChanged | Answer,
    BY_KIND,
]
FromReplica = Annotated[Answer | Unavailable | Report, BY_KIND]


class Codec(Generic[T]):
    """Encodes values of one type, or union, as JSON and decodes them."""

    def __init__(self, kind: Any) -> None:
        # NaN and infinity in Python's spelling, which JSON lacks. The server refuses them before a client gets them.
        self._adapter: TypeAdapter[T] = TypeAdapter(kind, config=ConfigDict(ser_json_inf_nan="constants"))

    def encode(self, value: T) -> bytes:
        """The JSON of a value."""
        return self._adapter.dump_json(value)

    def decode(self, data: bytes) -> T:
        """The value of JSON. Raises pydantic's ValidationError for other bytes."""
        return self._adapter.validate_json(data)

    def frame(self, value: T) -> bytes:
        """A frame: the length of the value's JSON, then the JSON."""
        data = self._adapter.dump_json(value)
        return HEADER.pack(len(data)) + data


TO_RANK: Codec[ToRank] = Codec(ToRank)
FROM_RANK: Codec[FromRank] = Codec(FromRank)
REQUESTS: Codec[Request] = Codec(AnyRequest)
EVENTS: Codec[Event] = Codec(AnyEvent)
TO_REPLICA: Codec[TextQuestion] = Codec(Annotated[TextQuestion, BY_KIND])
FROM_REPLICA: Codec[FromReplica] = Codec(FromReplica)
