"""`glm-infill fill`: fills the blanks of texts."""

import json
from typing import Annotated, Any

import typer
from rich.text import Text

from engine.config import EngineConfig
from server.commands.ask import ask, with_adapter
from server.commands.flags import Given, flags_of, takes_flags
from server.commands.options import ENGINE, Adapter, AsJson, Url, engine_options
from server.console import output
from server.exchange.sampling import SamplingFields
from server.protocols.native.schemas import InfillRequest
from server.settings import Limits

FLAGS = flags_of(InfillRequest, {*SamplingFields.model_fields, "num_beams", "length_penalty", "logprobs", "strategy"})


@takes_flags(*FLAGS, *ENGINE)
def fill(
    text: Annotated[list[str], typer.Argument(help=r"Texts with [MASK], \[sMASK] or \[gMASK].")],
    max_tokens: Annotated[int, typer.Option(help="The maximum number of tokens in a blank.")] = 64,
    min_tokens: Annotated[int, typer.Option(help="The minimum number of tokens in a blank.")] = 0,
    n: Annotated[int, typer.Option("-n", help="The number of answers for each text.")] = 1,
    order: Annotated[
        str, typer.Option(help="The order of blanks: left_to_right, right_to_left, random or confident.")
    ] = "left_to_right",
    choice: Annotated[
        list[str] | None, typer.Option(help="A text that a blank may be. Repeat the flag for more.")
    ] = None,
    regex: Annotated[
        list[str] | None, typer.Option(help="The pattern that every blank must match; or one for each blank.")
    ] = None,
    adapter: Adapter = None,
    url: Url = None,
    *,
    given: Given,
    as_json: AsJson = False,
) -> None:
    """Fills the blanks of texts, with a model loaded here or on a server."""
    body: dict[str, Any] = {"text": text, "max_tokens": max_tokens, "min_tokens": min_tokens, "n": n, "order": order}
    body |= {name: value for name, value in given.items() if name in {flag.name for flag in FLAGS}}
    body |= {name: value for name, value in (("choices", choice), ("regex", regex)) if value is not None}
    config = EngineConfig.of(engine_options(given))
    body, config = with_adapter(body, config, adapter, url)
    answer = ask("infill", body, lambda b: InfillRequest.model_validate(b).fill(Limits()), url, config)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    for result in answer["results"]:
        output.print(_highlighted(result, text[result["input_index"]]))


def _highlighted(result: dict[str, Any], text: str) -> Text:
    """The filled text with the fills set off."""
    shown, at = Text(), 0
    for blank in result["blanks"]:
        shown.append(text[at : blank["start"]])
        shown.append(blank["text"], style="bold green")
        at = blank["end"]
    return shown.append(text[at:])
