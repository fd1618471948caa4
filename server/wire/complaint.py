"""The first complaint of pydantic about a value, in one line that names the field."""

from dataclasses import dataclass

from pydantic import ValidationError

MAX_PATH_LEN = 120


@dataclass(frozen=True, slots=True)
class Complaint:
    """The fault of a field. `path` is dotted, "" for the whole value."""

    message: str
    path: str
    kind: str

    @classmethod
    def first(cls, error: ValidationError) -> "Complaint":
        """The first complaint of an error."""
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        path = _path(first["loc"])
        match first["type"]:
            case "extra_forbidden":
                return cls(f"unknown field {path}", path, "unknown_field")
            case "missing":
                return cls(f"{path} is required", path, "missing_field")
        return cls(f"{path}: {_plain(first['msg'])}", path, "invalid_value")


def _plain(message: str) -> str:
    """A message without pydantic's own words for a check that is ours, and for a string whose length is checked after
    it."""
    if message.startswith("Value should have at "):
        return message.replace("Value", "String", 1).replace(" item", " character", 1)
    return message.removeprefix("Value error, ")


def _path(location: tuple[int | str, ...]) -> str:
    """Dotted path of a field. Parts in angle brackets are branches of our unions, not the client's fields."""
    parts = [str(part) for part in location if not str(part).startswith("<")]
    path = ".".join(part if part.isprintable() else ascii(part) for part in parts)
    return path if len(path) <= MAX_PATH_LEN else path[:MAX_PATH_LEN] + "…"
