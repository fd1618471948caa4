"""The ignored fields: unknown fields of other servers' clients. Each is logged once."""

import re
from collections.abc import Iterable

from structlog.typing import FilteringBoundLogger

NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
MAX_NAMES = 256


class IgnoredFields:
    """The fields that are logged already. Their values are never logged; names only if they look like names."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self.log = log
        self._told: set[tuple[str, str]] = set()

    def note(self, route: str, names: Iterable[str]) -> None:
        """Notes the ignored fields of a request to a route."""
        new = [name for name in sorted(names) if NAME.fullmatch(name) and (route, name) not in self._told]
        new = new[: MAX_NAMES - len(self._told)]
        if new:
            self._told.update((route, name) for name in new)
            self.log.info("ignored fields", route=route, fields=new)
