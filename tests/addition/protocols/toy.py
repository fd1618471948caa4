"""A toy protocol: what stands between two texts, with errors of another shape, in a file of its own."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Request

from engine.answers import FillResult
from engine.requests import Fill, Mask
from server.exchange.bodies import Positive, String
from server.exchange.exchange import complete, submit
from server.exchange.protocol import Protocol
from server.exchange.sampling import SamplingFields
from server.exchange.service import Service, service_of
from server.exchange.takes import takes
from server.wire.answer import Answer
from server.wire.body import read_object
from server.wire.errors import ApiError

PATH = "/toy"

router = APIRouter(tags=["toy"])


class ToyRequest(SamplingFields):
    """The body of `POST /toy`."""

    before: String
    after: String
    length: Positive = 3


@router.post(PATH, openapi_extra=takes(ToyRequest))
async def toy(request: Request, service: Annotated[Service, Depends(service_of)]) -> Answer:
    """What stands between two texts."""
    settings = service.settings
    body = ToyRequest.model_validate(await read_object(request, settings.body_seconds))
    work = Fill(((body.before, Mask("[MASK]"), body.after),), (body.length,), sampling=body.sampling(settings.limits))
    results, _ = await complete(service, request, submit(service, request, work, f"toy-{uuid4().hex}"))
    return Answer({"between": [r.blanks[0].text for r in results if isinstance(r, FillResult)]})


def error_body(error: ApiError) -> dict[str, str]:
    """An error in the toy's shape."""
    return {"toy": error.message}


PROTOCOL = Protocol("toy", router, (ToyRequest,), frozenset({PATH}), {PATH: ToyRequest}, error_body)
