"""`glm-infill score`: how probable it is what stands in the blanks of a text."""

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from server.ask import ask, with_adapter
from server.console import output
from server.options import (
    Adapter,
    AsJson,
    GroupSize,
    Head,
    KVCacheKind,
    Model,
    Preset,
    Quantization,
    TokenizerFolder,
    Url,
    engine_config,
)
from server.protocols.native.schemas import ScoreRequest
from server.settings import Limits


def score(
    text: Annotated[str, typer.Argument(help="A text with blanks, or without for the whole text's score.")],
    span: Annotated[
        list[str] | None,
        typer.Option(help="What stands in the blanks: one a blank, or several candidates for a single blank."),
    ] = None,
    orders: Annotated[str, typer.Option(help='"left_to_right", "all" or a number of random orders.')] = "left_to_right",
    include_end: Annotated[bool, typer.Option("--include-end", help="Count the end token too.")] = False,
    normalize: Annotated[str, typer.Option(help="none, token or char.")] = "none",
    model: Model = None,
    quant: Quantization = None,
    group_size: GroupSize = None,
    quant_head: Head = None,
    preset: Preset = None,
    tokenizer: TokenizerFolder = None,
    kv_cache_type: KVCacheKind = None,
    adapter: Adapter = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Scores what stands in the blanks of a text."""
    body: dict[str, Any] = {"text": text, "include_end": include_end, "normalize": normalize}
    body["orders"] = int(orders) if orders.isdecimal() else orders
    if span:
        one_blank = sum(text.count(mask) for mask in ("[MASK]", "[sMASK]", "[gMASK]")) == 1
        body["spans"] = [[s] for s in span] if one_blank else span
    config = engine_config(model, quant, group_size, quant_head, preset, tokenizer, kv_cache_type)
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
