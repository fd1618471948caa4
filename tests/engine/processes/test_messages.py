"""Messages come back as they went, through their own JSON; a frame is its length and that."""

import math
from typing import get_args

import pytest
from pydantic import ValidationError

from engine.answers import Alternative, EchoedPrompt, Ranking, Usage
from engine.events import Begun, BlankDelta, BlankDone, Done, Echoed, Event, Failed, ResultDone, StepStats
from engine.processes.messages import (
    EVENTS,
    FROM_RANK,
    HEADER,
    REQUESTS,
    TO_RANK,
    AdaptersChanged,
    Alive,
    Cancel,
    Detokenize,
    FromRank,
    Happened,
    LoadAdapter,
    Loading,
    NotReady,
    Raised,
    Read,
    Ready,
    Refused,
    Reply,
    Spell,
    Stepped,
    Submit,
    Tokenize,
    ToRank,
    UnloadAdapter,
)  # fmt: skip
from engine.readings import Piece, Reading
from engine.requests import Fill, Mask, Request, Sampling, Score, Tokens
from tests.answers import blank, filled, scored
from tests.server.conftest import CARD, LAID


@pytest.mark.parametrize(
    "request_",
    [
        Fill(
            (("a ", Mask("[MASK]")), ("床前\n\t😀",)),
            (3, 4),
            (1,),
            Sampling(
                0.5, 4, 0.9, 0.1, {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3}, {7: -math.inf}, ("x", "y"), 11
            ),
            order=(1, 0),
            strategy="reencode",
            stream=True,
            timeout_s=2.5,
        ),
        Score(text=("a ", Mask("[MASK]")), spans=(("b",), ("c",)), orders=((0,),), logprobs=3),
        Score(context=("a",), targets=("b", "c"), orders=4, normalize="char"),
        Score(sentence_a="a", sentence_b="b"),
        Fill(((Tokens((1, 2)), Mask("[MASK]"), Tokens(())),), (0,), echo=True, fit=True),
        Score(context=(Tokens((4,)), "b"), targets=(Tokens((5, 6)), "c")),
    ],
)
def test_requests_come_back_as_they_went(request_: Request) -> None:
    assert REQUESTS.decode(REQUESTS.encode(request_)) == request_
    assert TO_RANK.decode(TO_RANK.encode(Submit("x", request_))) == Submit("x", request_)


@pytest.mark.parametrize(
    "event",
    [
        BlankDelta("x", 0, 0, 1, "t", [1], [-0.5]),
        Done("x", Usage(total_tokens=1), Ranking(0, [1.0])),
        ResultDone("x", filled([blank(text="t", top_logprobs=[[Alternative(1, "t", -0.5)]])])),
        ResultDone("x", scored(1, -0.5)),
        BlankDone("x", 0, 0, blank(choice_logprobs=[-1.0])),
        Echoed("x", 0, 0, EchoedPrompt([1], ["t"], [None], [None], [0])),
        Begun("x", Usage(), False),
        Failed("x", "error", "m"),
    ],
)
def test_events_come_back_as_they_went(event: Event) -> None:
    assert EVENTS.decode(EVENTS.encode(event)) == event


TO = [
    Cancel("x"),
    Tokenize("x", "a\n😀"),
    Detokenize("x", [1, 2], True, True, True),
    Read("x", Fill((("a ", Mask("[MASK]")),), fit=True), True),
    Spell("x", [1, 2]),
    LoadAdapter("x", "a", "/b"),
    UnloadAdapter("x", "a"),
]
FROM = [
    Loading(0.5), Ready(), Ready(CARD), NotReady("no such folder"), Raised("ValueError"), Alive(0.0),
    Stepped(StepStats(0.1, 1, 1, 1, 0.5)), Happened([Done("x", Usage(total_tokens=1)), Failed("y", "error", "m")]),
    AdaptersChanged([]), Reply("x"), Reply("x", "a"), Reply("x", [1]),
    Reply("x", [Reading([1], [0], [0], [LAID], 3, [4], True)]), Reply("x", [Piece(7, [195], "é")]),
    Refused("x", "m", "p", "c"),
]  # fmt: skip


@pytest.mark.parametrize("message", TO, ids=lambda message: message.kind)
def test_messages_to_a_rank_come_back_as_they_went(message: ToRank) -> None:
    assert TO_RANK.decode(TO_RANK.encode(message)) == message


@pytest.mark.parametrize("message", FROM, ids=lambda message: message.kind)
def test_messages_of_a_rank_come_back_as_they_went(message: FromRank) -> None:
    assert FROM_RANK.decode(FROM_RANK.encode(message)) == message


def test_every_kind_is_tried_here() -> None:
    assert {type(message) for message in FROM} == set(get_args(get_args(FromRank)[0]))
    assert {Submit, *map(type, TO)} == set(get_args(get_args(ToRank)[0]))


def test_numbers_that_json_has_not_come_back_too() -> None:
    done = EVENTS.decode(EVENTS.encode(BlankDelta("x", 0, 0, 0, "t", [1], [-math.inf, math.nan])))
    assert isinstance(done, BlankDelta)
    assert done.logprobs[0] == -math.inf
    assert math.isnan(done.logprobs[1])


def test_a_frame_is_its_length_and_its_json() -> None:
    data = FROM_RANK.frame(Alive(0.5))
    assert HEADER.unpack(data[: HEADER.size])[0] == len(data) - HEADER.size
    assert FROM_RANK.decode(data[HEADER.size :]) == Alive(0.5)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"kind":"other"}', b'{"kind":"alive"}', b'{"kind":"alive","step_age":"x"}']
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValidationError):
        FROM_RANK.decode(data)
