"""`glm-infill score`: log-probabilities of the texts in the blanks of a text."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from engine.config import EngineConfig
from server.commands.ask import ask, with_adapter
from server.commands.flags import Given, flags_of, takes_flags
from server.commands.options import ENGINE, Adapter, AsJson, Url, engine_options
from server.console import output
from server.protocols.native.schemas import ScoreRequest
from server.settings import Limits

FLAGS = flags_of(ScoreRequest, ("logprobs", "pll", "words", "seed"))


@takes_flags(*FLAGS, *ENGINE)
def score(
    text: Annotated[str, typer.Argument(help="A text with blanks; without blanks the whole text is scored.")],
    span: Annotated[
        list[str] | None,
        typer.Option(help="The text of a blank, once for each blank; or several candidates for a single blank."),
    ] = None,
    orders: Annotated[
        str,
        typer.Option(help='The orders of blanks to average over: "left_to_right", "all" or a number of random ones.'),
    ] = "left_to_right",
    include_end: Annotated[
        bool, typer.Option("--include-end", help="Add the log-probability of each blank's end token.")
    ] = False,
    normalize: Annotated[
        str,
        typer.Option(
            help="The divisor of a log-probability: none, token (number of tokens) or char (number of characters)."
        ),
    ] = "none",
    *,
    given: Given,
    adapter: Adapter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Scores the texts in the blanks of a text."""
    body: dict[str, Any] = {"text": text, "include_end": include_end, "normalize": normalize}
    body["orders"] = int(orders) if orders.isdecimal() else orders
    body |= {flag.name: given[flag.name] for flag in FLAGS if flag.name in given}
    if span:
        one_blank = sum(text.count(mask) for mask in ("[MASK]", "[sMASK]", "[gMASK]")) == 1
        body["spans"] = [[s] for s in span] if one_blank else span
    config = EngineConfig.of(engine_options(given))
    body, config = with_adapter(body, config, adapter, url)
    answer = ask("score", body, lambda b: ScoreRequest.model_validate(b).score(Limits()), url, config)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    table = Table("candidate", "log p", "perplexity", "probability")
    for result, probability in zip(answer["results"], answer["probabilities"], strict=True):
        words = " · ".join(s["text"] for s in result["spans"])
        table.add_row(words, f"{result['logprob']:.4f}", f"{result['perplexity']:.2f}", f"{probability:.3f}")
    output.print(table)
    for result in answer["results"] if given.get("words") else ():
        table = Table("word", "log p")
        for word in (word for own in result["spans"] for word in own["words"]):
            table.add_row(word["text"], f"{word['logprob']:.4f}")
        output.print(table)
