import json

import pytest

from engine.events import BlankDelta, Done, Event, Failed
from engine.requests import Fill, Mask, Request, Sampling, Score, Tokens
from engine.wire import HEADER, decode_event, decode_request, encode_event, encode_request, frame


@pytest.mark.parametrize(
    "request_",
    [
        Fill(
            (("a ", Mask("[MASK]")), ("床前\n\t😀",)),
            (3, 4),
            (1,),
            Sampling(0.5, 4, 0.9, 0.1, 1.2, 3, {7: -1.5}, ("x", "y"), 11),
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
    assert decode_request(json.loads(json.dumps(encode_request(request_)))) == request_


@pytest.mark.parametrize(
    "event",
    [
        BlankDelta("x", 0, 0, 1, "t", [1], [-0.5]),
        Done("x", {"total_tokens": 1}, {"best": 0}),
        Failed("x", "error", "m"),
    ],
)
def test_events_come_back_as_they_went(event: Event) -> None:
    assert decode_event(json.loads(json.dumps(encode_event(event)))) == event


def test_a_frame_is_its_length_and_its_json() -> None:
    data = frame({"op": "x"})
    assert HEADER.unpack(data[: HEADER.size])[0] == len(data) - HEADER.size
    assert json.loads(data[HEADER.size :]) == {"op": "x"}
