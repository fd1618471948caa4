"""The API's description: `/openapi.json`, and a page that shows it without the internet."""

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse

from server.exchange.takes import REFERENCE

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
# The page holds its own script and style and speaks to this server only.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"

router = APIRouter()


@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The API's description as a page."""
    page = files("server").joinpath("static/docs.html").read_text("utf-8")
    return HTMLResponse(page, headers={"content-security-policy": POLICY})


def describe(app: FastAPI, bodies: Iterable[type[BaseModel]]) -> dict[str, Any]:
    """The OpenAPI document of the application, with the schemas of bodies and errors."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=REFERENCE)
    document["components"] = {"schemas": {**schemas["$defs"], "Error": ERROR}}
    error = {"$ref": REFERENCE.format(model="Error")}
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"] = {
                "200": {"description": "success"},
                "default": {"description": "error", "content": {"application/json": {"schema": error}}},
            }
    return document
