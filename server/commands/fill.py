"""`glm-infill fill`: the blanks of texts, filled."""

import json
from typing import Annotated, Any

import typer
from rich.text import Text

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
from server.protocols.native.schemas import InfillRequest
from server.settings import Limits


def fill(
    text: Annotated[list[str], typer.Argument(help=r"Texts with [MASK], \[sMASK] or \[gMASK].")],
    max_tokens: Annotated[int, typer.Option(help="Tokens per blank.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option()] = 0,
    top_p: Annotated[float, typer.Option()] = 1.0,
    n: Annotated[int, typer.Option("-n", help="Answers per text.")] = 1,
    order: Annotated[str, typer.Option(help="left_to_right, right_to_left, random or confident.")] = "left_to_right",
    strategy: Annotated[str | None, typer.Option(help="append, reencode or parallel.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="What a blank may be; given several times.")] = None,
    regex: Annotated[list[str] | None, typer.Option(help="What all blanks match; or given once a blank.")] = None,
    num_beams: Annotated[int, typer.Option(help="Hypotheses of a beam search.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Of beams: above 0 prefers long fills.")] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
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
    """Fills the blanks of texts."""
    body: dict[str, Any] = {
        "text": text,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "n": n,
        "order": order,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
    }
    given = {"strategy": strategy, "stop": stop, "seed": seed, "choices": choice, "regex": regex}
    body |= {k: v for k, v in given.items() if v is not None}
    config = engine_config(model, quant, group_size, quant_head, preset, tokenizer, kv_cache_type)
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
