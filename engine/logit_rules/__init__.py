"""The logit rules: one file each, which exports one `RULE` (`engine.logit_rule`). They are found, not listed.

The server reads names and bounds here, so these files do not import torch.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from engine.logit_rule import LogitRule, Number, Parameter

STAGES = ("scale", "shift", "forbid")


@cache
def logit_rules() -> tuple[LogitRule, ...]:
    """All rules, in the order in which they act: by stage, then by name.

    Raises AttributeError for a file without a `RULE`.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    rules: list[LogitRule] = [importlib.import_module(f"{__name__}.{name}").RULE for name in names]
    return tuple(sorted(rules, key=lambda rule: STAGES.index(rule.stage)))


@cache
def parameters() -> tuple[Parameter, ...]:
    """The parameters of all rules."""
    return tuple(parameter for rule in logit_rules() for parameter in rule.parameters)


def active_rules(given: Mapping[str, Number]) -> list[tuple[LogitRule, dict[str, Number]]]:
    """The rules that change something, and the values of all parameters. Raises ValueError for an unknown name."""
    if not given:
        return []
    unknown = given.keys() - {parameter.name for parameter in parameters()}
    if unknown:
        raise ValueError(f"no logit rule has {', '.join(sorted(unknown))}")
    active = []
    for rule in logit_rules():
        defaults = {parameter.name: parameter.default for parameter in rule.parameters}
        values = {name: given.get(name, default) for name, default in defaults.items()}
        if values != defaults:
            active.append((rule, values))
    return active
