"""Flags: a command's options, made from the fields of pydantic models, so that each is written once.

`@takes_flags(…)` gives a typer command the flags of some fields. The command gets the given ones, by field name, in its
parameter `given`. The model checks their values (`checked`).
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import annotated_types
import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.options import Repeated
from server.console import fail
from server.wire.complaint import Complaint

Given = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)
MANY = 2**31 - 1
MARK = "given"  # the parameter of a command that the flags stand for


@dataclass(frozen=True, slots=True)
class Flag:
    """One field as a flag. `panel` is its heading in the help."""

    name: str
    field: FieldInfo
    panel: str | None
    variable: str | None = None
    fallback: Any = None  # the command's own default, in place of the field's

    @property
    def option(self) -> str:
        """The flag itself, such as `--kv-cache-gb`."""
        return self.repeated.flag if self.repeated else "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> Any:
        """The field's type without None; of a union the first one."""
        return _kind(self.field.annotation)

    @property
    def repeated(self) -> Repeated | None:
        """The form of a flag that may be given several times; None for another one."""
        return next((m for m in self.field.metadata if isinstance(m, Repeated)), None)

    @property
    def default(self) -> str | None:
        """The default for the help; None if it shows none."""
        value = self.field.default if self.fallback is None else self.fallback
        if value is None or self.repeated or self.field.is_required() or self.field.default_factory is not None:
            return None
        return str(value).lower() if isinstance(value, bool) else str(value)

    def parameter(self) -> inspect.Parameter:
        """The parameter of a command."""
        shown = [self.field.description or ""]
        if self.variable is not None:
            shown.append(rf"\[env var: {self.variable}]")
        if self.default is not None:
            shown.append(rf"\[default: {self.default}]")
        low, high = bounds(self.field)
        is_range = low is not None and self.kind in (int, float)
        declared = self.option
        if self.kind is bool:
            declared = f"{self.option}/--no-{self.option.removeprefix('--')}" if self.variable else self.option
        option = typer.Option(
            declared,
            help=" ".join(shown),
            rich_help_panel=self.panel,
            show_default=False,
            metavar=self.repeated.value if self.repeated else None,
            min=low if is_range else None,
            max=high if is_range else None,
        )
        annotation = cast(Any, Annotated)[_typer_kind(self) | None, option]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def value(self, given: Any) -> Any:
        """The field's value from the command line. Raises typer.BadParameter for a wrong form."""
        if self.repeated and "=" in self.repeated.value:
            return _pairs(self, self.repeated, given)
        if self.repeated and typing.get_origin(self.kind) is list:
            return _whole_numbers(self.repeated, given)
        return given.value if isinstance(given, Enum) else given


def flags_of(model: type[BaseModel], names: Iterable[str] | None = None, prefix: str | None = None) -> tuple[Flag, ...]:
    """The flags of a model's fields, all or those named, in the model's order.

    With a `prefix` each has an environment variable, which the help names, and its class's group as panel.
    """
    wanted = model.model_fields.keys() if names is None else set(names)
    return tuple(
        Flag(name, field, _group(model, name) if prefix else None, f"{prefix}{name.upper()}" if prefix else None)
        for name, field in model.model_fields.items()
        if name in wanted
    )


def with_defaults(flags: Iterable[Flag], **defaults: Any) -> tuple[Flag, ...]:
    """The flags with a command's own defaults, by field name."""
    return tuple(replace(flag, fallback=defaults.get(flag.name)) for flag in flags)


def takes_flags(*flags: Flag) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replaces a command's parameter `given` by flags."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {f.name: f.fallback for f in flags if f.fallback is not None}
            for flag in flags:
                value = values.pop(flag.name)
                if value not in (None, [], ()):
                    given[flag.name] = flag.value(value)
            command(**values, **{MARK: given})

        made = []
        for parameter in own.values():
            made += [f.parameter() for f in flags] if parameter.name == MARK else [parameter]
        made = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in made]
        run.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
        run.__annotations__ = {}
        return run

    return decorate


def checked(model: type[Model], given: Mapping[str, Any]) -> Model:
    """The model of the given values. If it refuses one, the command ends with one line.

    The line names the flag, or the environment variable if the value came from there.
    """
    try:
        return model(**given)
    except ValidationError as error:
        found = Complaint.first(error)
    name, dot, _ = found.path.partition(".")
    message = found.message
    if name in model.model_fields:
        variable = f"{model.model_config.get('env_prefix', '')}{name}".upper()
        shown = Flag(name, model.model_fields[name], None).option if name in given else variable
        message = message.replace(name + dot, shown + dot, 1)
    fail(message, code=2)


def _kind(annotation: Any) -> Any:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        members = [_kind(member) for member in typing.get_args(annotation) if member is not type(None)]
        return members[0]
    return annotation


def _typer_kind(flag: Flag) -> Any:
    kind = flag.kind
    if flag.repeated:
        return list[str]
    if typing.get_origin(kind) is Literal:
        values = typing.get_args(kind)
        return Enum(flag.name, {v: v for v in values}, type=str) if isinstance(values[0], str) else type(values[0])
    return kind if kind in (int, float, bool, Path) else str


def bounds(field: FieldInfo) -> tuple[float | None, float | None]:
    """The least and the greatest value, inclusive; None if there is none, or one out of reach."""
    low = next((cast(float, m.ge) for m in _metadata(field) if isinstance(m, annotated_types.Ge)), None)
    high = next((cast(float, m.le) for m in _metadata(field) if isinstance(m, annotated_types.Le)), None)
    return low, high if high is not None and high < MANY else None


def _metadata(field: FieldInfo) -> Iterable[Any]:
    yield from field.metadata
    for member in typing.get_args(field.annotation):
        if typing.get_origin(member) is Annotated:
            for item in typing.get_args(member)[1:]:
                yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _group(model: type[BaseModel], name: str) -> str | None:
    """The first line of the docstring of the class that has the field first."""
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel) and name in inspect.get_annotations(base):
            return (base.__doc__ or "").partition("\n")[0] or None
    return None


def _whole_numbers(form: Repeated, given: Iterable[str]) -> list[int]:
    """A list of numbers. Raises typer.BadParameter."""
    found = []
    for value in given:
        if not (value.isascii() and value.isdigit()):
            raise typer.BadParameter(f"{form.flag} {value}: must be {form.value}, a whole number")
        found.append(int(value))
    return found


def _pairs(flag: Flag, form: Repeated, given: Iterable[str]) -> dict[str, Any]:
    """A mapping of its pairs; values are numbers where the field has such."""
    found: dict[str, Any] = {}
    kinds = typing.get_args(flag.kind)
    is_number = len(kinds) == 2 and _kind(kinds[1]) is float
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"{form.flag} {pair}: must be {form.value}")
        if name in found:
            raise typer.BadParameter(f"{form.flag} {pair}: there is another {name}")
        try:
            found[name] = float(value) if is_number else value
        except ValueError:
            raise typer.BadParameter(f"{form.flag} {pair}: {value!r} is not a number") from None
    return found
