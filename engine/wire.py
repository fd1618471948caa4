"""How requests and events cross a process boundary: JSON frames, each after its length. No pickle."""

import json
import struct
from dataclasses import asdict
from typing import Any

from engine.events import EVENTS, Event, StepStats
from engine.requests import Fill, Mask, Request, Sampling, Score, Segments, Tokens

HEADER = struct.Struct("!I")
MAX_FRAME = 256 * 1024 * 1024


def frame(message: dict[str, Any]) -> bytes:
    """A message with its length before it."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return HEADER.pack(len(body)) + body


def values_of(item: Request | Event | StepStats) -> dict[str, Any]:
    """The fields of a dataclass with slots, themselves where `asdict` makes deep copies."""
    return {name: getattr(item, name) for name in item.__slots__}


def encode_request(request: Request) -> dict[str, Any]:
    """A request as JSON values; a mask among segments is {"mask": name}, token ids are {"ids": list}."""
    values = values_of(request)
    if isinstance(request, Fill):
        values["inputs"] = [_segments(s) for s in request.inputs]
        values["sampling"] = asdict(request.sampling)
    else:
        for name in ("text", "context", "targets"):
            if values[name] is not None:
                values[name] = _segments(values[name])
    return {"kind": type(request).__name__, **values}


def decode_request(values: dict[str, Any]) -> Request:
    """The inverse of `encode_request`, lists becoming tuples again."""
    kind = values.pop("kind")
    if kind == "Fill":
        sampling = values["sampling"]
        sampling["logit_bias"] = {int(k): v for k, v in sampling["logit_bias"].items()}
        sampling["stop"] = tuple(sampling["stop"])
        inputs = tuple(_from_segments(s) for s in values.pop("inputs"))
        values["sampling"] = Sampling(**sampling)
        return Fill(inputs=inputs, **{k: _tuple(v) for k, v in values.items()})
    for name in ("text", "context", "targets"):
        if values[name] is not None:
            values[name] = _from_segments(values[name])
    return Score(**{k: _tuple(v) for k, v in values.items()})


def encode_event(event: Event) -> dict[str, Any]:
    """An event as JSON values, its own and not copies of them."""
    return {"event": type(event).__name__} | values_of(event)


def decode_event(values: dict[str, Any]) -> Event:
    event: Event = EVENTS[values.pop("event")](**values)
    return event


def _segments(segments: Segments) -> list[Any]:
    return [_segment(s) for s in segments]


def _segment(segment: str | Mask | Tokens) -> Any:
    match segment:
        case Mask(name):
            return {"mask": name}
        case Tokens(ids):
            return {"ids": ids}
        case _:
            return segment


def _from_segments(items: list[Any]) -> Any:
    return tuple(_from_segment(item) for item in items)


def _from_segment(item: Any) -> str | Mask | Tokens:
    if not isinstance(item, dict):
        return str(item)
    return Mask(item["mask"]) if "mask" in item else Tokens(tuple(item["ids"]))


def _tuple(value: Any) -> Any:
    return tuple(_tuple(v) for v in value) if isinstance(value, list) else value
