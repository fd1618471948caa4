"""What holds of every protocol that the server finds."""

import typer

from engine.logit_rules import parameters
from engine.requests import Sampling
from server.cli import app
from server.exchange.bodies import Wire
from server.exchange.protocol import Protocol
from server.exchange.sampling import SamplingFields
from server.protocols import protocols
from server.settings import Limits

DRAWING = [body for protocol in protocols() for body in protocol.bodies if issubclass(body, SamplingFields)]


def test_protocols_are_found_and_have_names_and_paths_of_their_own() -> None:
    found = protocols()
    assert {"native", "openai", "llama_cpp", "sglang", "lm_eval"} <= {protocol.name for protocol in found}
    assert all(isinstance(protocol, Protocol) for protocol in found)
    paths = [path for protocol in found for path in protocol.paths]
    assert len(paths) == len(set(paths))
    assert all({*protocol.work, *protocol.batch} <= protocol.paths for protocol in found)


def test_bodies_are_strict_and_have_names_of_their_own() -> None:
    bodies = [body for protocol in protocols() for body in protocol.bodies]
    assert all(issubclass(body, Wire) and body.model_config.get("strict") for body in bodies)
    assert len({body.__name__ for body in bodies}) == len(bodies)


def test_whatever_draws_tokens_knows_all_sampling_fields() -> None:
    assert {body.__name__ for body in DRAWING} >= {"InfillRequest", "CompletionRequest", "EditorRequest"}
    assert all(body.model_fields.keys() >= SamplingFields.model_fields.keys() for body in DRAWING)
    assert {parameter.name for parameter in parameters()} < SamplingFields.model_fields.keys()


def test_fill_has_a_flag_for_each_sampling_field() -> None:
    (fill,) = (c for name, c in typer.main.get_command(app).commands.items() if name == "fill")  # type: ignore[attr-defined]
    flags = {flag for option in fill.params for flag in option.opts}
    assert {"--" + name.replace("_", "-") for name in SamplingFields.model_fields} <= flags


def test_a_rule_s_default_is_left_out() -> None:
    assert SamplingFields.model_validate({}).sampling(Limits()) == Sampling()
