"""A fill of no tokens: the texts are read and counted, and empty blanks are the answer."""

from collections.abc import Mapping

from engine.answers import EMPTY, FillResult, Usage
from engine.client import EngineClient
from engine.events import Begun, BlankDone, Done, ResultDone
from engine.requests import Fill
from server.exchange.exchange import Events
from server.exchange.prompt import readings


async def nothing(work: Fill, engine: EngineClient, work_id: str, engine_names: Mapping[str, str]) -> Events:
    """The events of a request with `max_tokens` 0. Raises RequestError for texts that the model cannot read."""
    read = await readings(work, engine, engine_names)
    count = sum(reading.num_tokens for reading in read)
    counted = Usage(prompt_tokens=count, total_tokens=count)
    yield Begun(work_id, counted, any(reading.fitted for reading in read))
    for index in range(len(work.inputs) * work.n):
        input_index = index // work.n
        fitted = read[input_index].fitted if work.fit else None
        yield BlankDone(work_id, index, input_index, EMPTY)
        yield ResultDone(work_id, FillResult(index, input_index, "", 0.0, [EMPTY], fitted=fitted))
    yield Done(work_id, counted)
