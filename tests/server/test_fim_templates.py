"""Prompts as other models' cards and their clients write them, read as two texts around a blank."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.fim_templates import TEMPLATES, Around, around, named_like

A, B = "def f(x):\n    return ", "\n\nprint(f(2))\n"
# As the model cards and editors write them; Zed's edit predictions have those of codellama, starcoder, deepseek, qwen,
# codestral and glm.
PROMPTS = {
    "glm": f"<|code_prefix|>{A}<|code_suffix|>{B}<|code_middle|>",
    "codegeex": f"<|user|>\n<|code_suffix|>{B}<|code_prefix|>{A}<|code_middle|><|assistant|>\n",
    "qwen": f"<|fim_prefix|>{A}<|fim_suffix|>{B}<|fim_middle|>",
    "starcoder": f"<fim_prefix>{A}<fim_suffix>{B}<fim_middle>",
    "santacoder": f"<fim-prefix>{A}<fim-suffix>{B}<fim-middle>",
    "codellama": f"<PRE> {A} <SUF>{B} <MID>",
    "deepseek": f"<｜fim▁begin｜>{A}<｜fim▁hole｜>{B}<｜fim▁end｜>",
    "codestral": f"[SUFFIX]{B}[PREFIX]{A}",
    "seed": f"<[fim-suffix]>{B}<[fim-prefix]>{A}<[fim-middle]>",
}


def test_every_template_has_a_prompt() -> None:
    assert PROMPTS.keys() == TEMPLATES.keys()


@pytest.mark.parametrize("name", PROMPTS)
def test_what_stands_around_the_blank(name: str) -> None:
    assert around(PROMPTS[name], tuple(TEMPLATES)) == Around(A, B)
    assert around(PROMPTS[name], tuple(TEMPLATES.keys() - {name})) is None
    assert around("<s>" + PROMPTS[name], (name,)) == Around(A, B)
    assert named_like(PROMPTS[name]) is not None


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_that_is_not_wholly_of_the_form_stays_text(name: str) -> None:
    template = TEMPLATES[name]
    prompt = PROMPTS[name]
    assert template.read(prompt.replace(template.marks[0], "")) is None
    assert template.read(prompt + prompt) is None
    assert template.read(f"{template.marks[1]}{A}{template.marks[0]}{B}") is None
    if len(template.marks) == 3:
        assert template.read(prompt.rstrip() + " and more") is None


@pytest.mark.parametrize("name", PROMPTS)
@given(before=st.text(), after=st.text())
def test_both_sides_come_back(name: str, before: str, after: str) -> None:
    first, *others = TEMPLATES[name].marks
    assume(not any(mark in before + after for mark in TEMPLATES[name].marks))
    sides = (after, before) if TEMPLATES[name].suffix_first else (before, after)
    rest = "".join(mark + side for mark, side in zip(others, (*sides[1:], ""), strict=False))
    assert TEMPLATES[name].read(f"{first}{sides[0]}{rest}") == Around(before, after)


def test_other_files_are_context() -> None:
    prompt = f"<|repo_name|>r\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\n{PROMPTS['qwen']}"
    sides = around(prompt, ("qwen",))
    assert sides is not None
    assert sides.before.startswith("r\n")
    assert "a.py\nx = 1\n" in sides.before
    assert sides.before.endswith(A)
    assert "<|" not in sides.before


def test_words_that_look_like_codestral_s_marks_stay_text() -> None:
    assert around("x = y[SUFFIX] and y[PREFIX]", tuple(TEMPLATES)) is None


def test_marks_are_found_anywhere() -> None:
    assert named_like(f"Complete this: {PROMPTS['qwen']} Thank you.") == "qwen"
    assert named_like("<PRE>a<SUF>b<MID>") == "codellama"  # without its spaces it is no template, but told
    assert named_like("a <PRE> tag and a [SUFFIX]") is None
