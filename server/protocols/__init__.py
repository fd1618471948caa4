"""The clients' protocols: one folder or file each, which exports one `PROTOCOL` (`server.exchange.protocol`).

They are found, not listed: a new one needs no other edit.
"""

import importlib
import pkgutil
from functools import cache

from server.exchange.protocol import Protocol


@cache
def protocols() -> tuple[Protocol, ...]:
    """All protocols, by name. Raises AttributeError for a module without a `PROTOCOL`."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(importlib.import_module(f"{__name__}.{name}").PROTOCOL for name in names)
