"""The registry of schemes: names and facts without torch, and that the facts are true."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quant.schemes
from quant.registry import (
    FLOAT,
    build,
    group_sizes,
    head_names,
    published_as,
    scheme_class,
    scheme_facts,
    scheme_names,
    smaller_heads,
    smaller_schemes,
)
from quant.scheme import HeadScheme, IntegerScheme
from quant.usage import UsageError

every_scheme = pytest.mark.parametrize("name", scheme_names())


def test_every_scheme_is_listed_the_float_one_first() -> None:
    assert scheme_names() == ("none", "int4", "int8", "llm-int8", "nf4")
    assert head_names() == ("none", "int4", "int8")
    assert group_sizes() == (0, 32, 64, 128)


@every_scheme
def test_facts_are_true(name: str) -> None:
    found, facts = scheme_class(name), scheme_facts(name)
    assert found.name == name
    assert found.facts == facts
    assert facts.description
    assert facts.default_head == ("int8" if facts.bits < 16 else FLOAT)
    assert issubclass(found, HeadScheme) or not facts.head
    assert issubclass(found, IntegerScheme) == facts.calibrates
    assert found.kernels()


@every_scheme
def test_random_weights_are_as_announced(name: str) -> None:
    scheme = build(name)
    made = scheme.random(32, 256, torch.Generator().manual_seed(0))
    assert {k: (tuple(t.shape), t.dtype) for k, t in made.items()} == scheme.tensors(32, 256)
    weight = scheme.dequantize(made)
    assert 0.005 < weight.std() < 0.05
    assert weight.mean().abs() < 0.005


@every_scheme
def test_activations_of_no_device_have_more_than_32_bits(name: str) -> None:
    scheme = build(name)
    assert [scheme.activation_bits(device) in (8, 16, 32) for device in ("cpu", "cuda")] == [True, True]
    assert not scheme.copies_weight(None, 2048)
    assert not scheme.copies_weight(8.0, 2048)


def test_a_plan_is_told_smaller_schemes_that_need_nothing_installed() -> None:
    assert [smaller_schemes(name) for name in scheme_names()] == [("int8", "int4"), (), ("int4",), ("int4",), ()]
    assert smaller_heads(FLOAT) == ("int8", "int4")


def test_published_bits_have_a_scheme() -> None:
    assert [published_as(bits) for bits in (4, 8)] == ["int4", "int8"]
    with pytest.raises(ValueError, match="no scheme stores published weights of 3 bits"):
        published_as(3)


def test_names_and_facts_need_no_torch() -> None:
    code = "import sys; from quant import registry; registry.head_names(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(quant.__file__).parents[1], check=True, timeout=60)


@pytest.mark.parametrize("text", ["", "FACTS = SchemeFacts(bits=8)", "FACTS = SchemeFacts(description=x, bits=8)"])
def test_a_file_without_facts_is_told(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vague.py").write_text(text)
    monkeypatch.setattr(quant.schemes, "__path__", [*quant.schemes.__path__, str(tmp_path)])
    assert "vague" in scheme_names()
    with pytest.raises(ValueError, match=r"vague\.py: needs FACTS = SchemeFacts"):
        scheme_facts("vague")


@pytest.mark.parametrize("name", ["int3", "", "__init__", "../int4", "llm_int8"])
def test_other_names_are_refused(name: str) -> None:
    for ask in (scheme_facts, scheme_class, build):
        with pytest.raises(UsageError, match="no such scheme"):
            ask(name)
