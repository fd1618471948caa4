"""The families that can be served. A new one is a file here and a line below."""

from model.config import CheckpointError, Config
from model.families import bert, chatglm, glm, glm4, glm130b
from model.family import Family

FAMILIES: tuple[Family, ...] = (glm.FAMILY, glm130b.FAMILY, chatglm.FAMILY, glm4.FAMILY, bert.FAMILY)
PRESETS = {name: (family, Config(fields)) for family in FAMILIES for name, fields in family.presets.items()}


def family_of(config: Config) -> Family:
    """The family of a config.json. Raises CheckpointError."""
    for family in FAMILIES:
        if family.recognises(config):
            return family
    raise CheckpointError(
        f"{config.source}: no known family has model_type {config.get('model_type')!r} with these fields; "
        f"known are {', '.join(f.name for f in FAMILIES)}"
    )
