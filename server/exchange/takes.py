"""A route's body in the API's description. The framework cannot see it, because the route reads the body itself."""

from typing import Any

from pydantic import BaseModel

REFERENCE = "#/components/schemas/{model}"


def takes(*bodies: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route with this body, or with one of several."""
    references = [{"$ref": REFERENCE.format(model=body.__name__)} for body in bodies]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
