"""The families that can be served: every file of this folder with a `FAMILY`."""

import importlib
import pkgutil
from collections.abc import Iterable

from model.config import CheckpointError, Config
from model.family import Family


def find_families(paths: Iterable[str]) -> tuple[Family, ...]:
    """`FAMILY` of every module in these package folders, in the order of the modules' names."""
    modules = (importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(paths))
    return tuple(module.FAMILY for module in modules)


FAMILIES = find_families(__path__)
PRESETS = {name: (family, Config(fields)) for family in FAMILIES for name, fields in family.presets.items()}


def family_of(config: Config) -> Family:
    """The family of a config.json. Raises CheckpointError unless exactly one family recognises it."""
    found = [family for family in FAMILIES if family.recognises(config)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{config.source}: recognised by {' and '.join(family.name for family in found)}")
    known = ", ".join(f.name for f in FAMILIES)
    if config.get("model_type") is None:
        raise CheckpointError(f"{config.source}: has no model_type, which names the family; known are {known}")
    raise CheckpointError(
        f"{config.source}: no known family has model_type {config.get('model_type')!r} with these fields; "
        f"known are {known}"
    )
