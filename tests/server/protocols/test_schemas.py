"""Bad fills: each is a 400 that names its field, before the engine hears of it."""

import pytest

from engine.requests import Mask
from server.exchange.bodies import split

LONE = '{"text": "\\ud800"}'


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "segments": ["b"]}, "text"),
        ({"text": None}, "text"),
        ({"text": "a", "tempreature": 1}, "tempreature"),
        ({"text": "a", "a\nb": 1}, "'a\\nb'"),
        ({"text": 5}, "text"),
        ({"text": []}, "text"),
        ({"text": ["a", 5]}, "text.1"),
        ({"text": ["a"] * 65}, "text"),
        ({"text": "[MASK]" * 65}, "text"),
        ({"segments": []}, "segments"),
        ({"segments": ["a", {"mask": "[XMASK]"}]}, "segments.1.mask"),
        ({"segments": ["a", {"mask": "[MASK]", "x": 1}]}, "segments.1.x"),
        ({"segments": ["a", 1]}, "segments.1"),
        ({"segments": [{"mask": "[MASK]"}] * 65}, "segments"),
        ({"text": "a", "n": 0}, "n"),
        ({"text": "a", "n": 9}, "n"),
        ({"text": "a", "n": -1}, "n"),
        ({"text": "a", "n": True}, "n"),
        ({"text": "a", "n": 1.0}, "n"),
        ({"text": "a", "n": "1"}, "n"),
        ({"text": "a", "n": None}, "n"),
        ({"text": "a", "max_tokens": 1025}, "max_tokens"),
        ({"text": "a", "max_tokens": 0}, "max_tokens"),
        ({"text": "a", "max_tokens": True}, "max_tokens"),
        ({"text": "a", "max_tokens": []}, "max_tokens"),
        ({"text": "a", "max_tokens": [1, 2000]}, "max_tokens"),
        ({"text": "a", "max_tokens": [1, "2"]}, "max_tokens.1"),
        ({"text": "a", "max_tokens": [1] * 65}, "max_tokens"),
        ({"text": "a", "max_tokens": 2**40}, "max_tokens"),
        ({"text": "a", "min_tokens": 65}, "min_tokens"),
        ({"text": "[MASK][MASK]", "min_tokens": 3, "max_tokens": [4, 2]}, "min_tokens"),
        ({"text": "a", "temperature": -0.1}, "temperature"),
        ({"text": "a", "temperature": True}, "temperature"),
        ({"text": "a", "top_p": 0}, "top_p"),
        ({"text": "a", "top_p": 1.1}, "top_p"),
        ({"text": "a", "top_k": -1}, "top_k"),
        ({"text": "a", "repetition_penalty": 0}, "repetition_penalty"),
        ({"text": "a", "logit_bias": {"-1": 0}}, "logit_bias.-1.[key]"),
        ({"text": "a", "logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"text": "a", "logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"text": "a", "stop": ""}, "stop"),
        ({"text": "a", "stop": ["x"] * 33}, "stop"),
        ({"text": "a", "stop": ["x" * 257]}, "stop.0"),
        ({"text": "a", "seed": -1}, "seed"),
        ({"text": "a", "logprobs": 21}, "logprobs"),
        ({"text": "a", "logprobs": True}, "logprobs"),
        ({"text": "a", "order": "best"}, "order"),
        ({"text": "a", "order": []}, "order"),
        ({"text": "a", "order": [-1]}, "order.0"),
        ({"text": "a", "strategy": "other"}, "strategy"),
        ({"text": "a", "stream": 1}, "stream"),
        ({"text": "a", "priority": "high"}, "priority"),
        ({"text": "a", "timeout_s": 0}, "timeout_s"),
        ({"text": "a", "timeout_s": 601}, "timeout_s"),
    ],
)
def test_bad_bodies_are_400_and_name_the_field(client, engine, refused, body, param):
    refused(client.post("/v1/infill", json=body), 400, param)
    assert not engine.asked


@pytest.mark.parametrize(
    ("given", "choices"),
    [
        (["a", "b"], (("a", "b"),)),
        ([["a", "b"], None, ["c"]], (("a", "b"), None, ("c",))),
        ([None, ["c"]], (None, ("c",))),
    ],
)
def test_choices_are_for_all_blanks_or_for_each(client, engine, given, choices):
    assert client.post("/v1/infill", json={"text": "a", "choices": given, "num_beams": 2}).status_code == 200
    assert engine.asked[-1].choices == choices
    assert engine.asked[-1].num_beams == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"choices": []}, "choices"),
        ({"choices": [[]]}, "choices.0"),
        ({"choices": [""]}, "choices.0"),
        ({"choices": ["a", ["b"]]}, "choices.1"),
        ({"choices": ["a [MASK]"]}, "choices"),
        ({"choices": ["a"] * 1025}, "choices"),
        ({"choices": "a"}, "choices"),
        ({"num_beams": 17}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"length_penalty": 101}, "length_penalty"),
    ],
)
def test_choices_and_beams_have_limits(client, refused, body, param):
    refused(client.post("/v1/infill", json={"text": "a", **body}), 400, param)


@pytest.mark.parametrize(("given", "regex"), [("a|b", ("a|b",)), (["a", None], ("a", None)), (None, ())])
def test_a_regex_is_for_all_blanks_or_for_each(client, engine, given, regex):
    assert client.post("/v1/infill", json={"text": "a", "regex": given}).status_code == 200
    assert engine.asked[-1].regex == regex


@pytest.mark.parametrize(
    ("given", "param"), [([], "regex"), (["a"] * 65, "regex"), ("a" * 1025, "regex"), ([1], "regex.0"), (1, "regex")]
)
def test_a_regex_has_limits(client, engine, refused, given, param):
    refused(client.post("/v1/infill", json={"text": "a", "regex": given}), 400, param)
    assert not engine.asked


def test_messages_never_quote_the_input(client):
    response = client.post("/v1/infill", json={"text": "a", "order": "my secret", "n": "my secret"})
    assert "secret" not in response.text


def test_lone_surrogate_is_400(client, refused):
    refused(client.post("/v1/infill", content=LONE, headers={"content-type": "application/json"}), 400, "text")
    refused(
        client.post("/v1/infill", content='{"text": "a", "\\udc00": 1}', headers={"content-type": "application/json"}),
        400,
    )


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("", ()),
        ("a", ("a",)),
        ("[MASK]", (Mask("[MASK]"),)),
        ("[MASK][gMASK]", (Mask("[MASK]"), Mask("[gMASK]"))),
        ("a[sMASK] b", ("a", Mask("[sMASK]"), " b")),
        ("[mask] [[MASK]", ("[mask] [", Mask("[MASK]"))),
    ],
)
def test_split(text, segments):
    assert split(text) == segments
