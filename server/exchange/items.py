"""Items: several scores of one request, side by side. Several protocols have them."""

from collections.abc import Mapping

from starlette.requests import Request

from engine.answers import FillResult, ScoreResult
from engine.requests import Score
from server.exchange.exchange import complete_all, submit
from server.exchange.service import Service

COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


async def score_items(
    service: Service, request: Request, works: Mapping[str, Score], names: Mapping[str, str], item: str
) -> tuple[list[list[FillResult | ScoreResult]], dict[str, int]]:
    """The results of each score, in order, and the usage of all together.

    `works` are the scores by id, `names` the client's names of fields, and `item` its name of one score. Raises
    ApiError or RequestError; one failure ends all scores.
    """
    streams = [submit(service, request, work, work_id, names) for work_id, work in works.items()]
    outcomes = await complete_all(service, request, streams, item)
    usage = {name: sum(getattr(done.usage, name) for _, done in outcomes) for name in COUNTS}
    return [results for results, _ in outcomes], usage
