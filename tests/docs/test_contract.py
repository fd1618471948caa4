"""The contract's page and the code have the same names: none is renamed or removed, and none is left out."""

import re
from pathlib import Path

import pytest
import typer

from server.app import ROUTES
from server.cli import app
from server.protocols.native.schemas import InfillRequest, ScoreRequest
from server.settings import Settings
from server.telemetry.metrics import Metrics

PAGE = (Path(__file__).parents[2] / "docs/contract.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table of a section."""
    section = re.split(r"^#+ ", PAGE.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def commands(command: object, prefix: str = "") -> dict[str, set[str]]:
    """Flags by command, `bench decode` and its like by both words."""
    if subcommands := getattr(command, "commands", None):
        return {k: v for name, sub in subcommands.items() for k, v in commands(sub, f"{prefix} {name}".strip()).items()}
    shown = [option for option in getattr(command, "params", ()) if not getattr(option, "hidden", False)]
    flags = {flag for option in shown for flag in (*option.opts, *option.secondary_opts)}
    return {prefix: {flag for flag in flags if flag.startswith("--")} - {"--help"}}


def test_commands_and_flags() -> None:
    listed = {row[0].strip("`"): names(row[2]) for row in rows("Commands") if len(row) == 3 and row[2].startswith("`")}
    assert listed == commands(typer.main.get_command(app))


def test_routes() -> None:
    listed = {name for row in rows("Routes") for name in names(row[0])}
    assert listed == {route for route in ROUTES if not route.startswith("/playground/")}


@pytest.mark.parametrize(("route", "body"), [("/v1/infill", InfillRequest), ("/v1/score", ScoreRequest)])
def test_request_fields(route: str, body: type[InfillRequest] | type[ScoreRequest]) -> None:
    listed = {name for row in rows(f"Request fields of `{route}`") for name in names(re.sub(r"\([^)]*\)", "", row[0]))}
    assert listed == set(body.model_fields)


def test_metrics() -> None:
    metrics = Metrics()
    made = {family.name.removeprefix("glm_infill_") for family in metrics.registry.collect()}
    listed = {name for row in rows("Metrics") for part in row[1].split(", ") for name in names(part.split(" by ")[0])}
    listed = {name for name in listed if name not in {"quant", "tp"}}
    assert listed == made | {"ranks"}  # the number of ranks appears with the model


def test_environment_variables() -> None:
    listed = {name for row in rows("Environment variables") for name in names(row[0])}
    listed = {name.removeprefix("GLM_INFILL_").partition("__")[0].lower() for name in listed}
    assert listed == set(Settings.model_fields)
