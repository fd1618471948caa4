"""Prompts as other models' cards and their clients write them, read as two texts around a blank."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.fim_templates import TEMPLATES, Around, FimTemplate, around, named_like

A, B = "def f(x):\n    return ", "\n\nprint(f(2))\n"
# As the model cards and editors write them; Zed's edit predictions have those of codellama, starcoder, deepseek, qwen,
# codestral and glm.
PROMPTS = {
    "glm": (f"<|code_prefix|>{A}<|code_suffix|>{B}<|code_middle|>",),
    "codegeex": (f"<|user|>\n<|code_suffix|>{B}<|code_prefix|>{A}<|code_middle|><|assistant|>\n",),
    "qwen": (
        f"<|fim_prefix|>{A}<|fim_suffix|>{B}<|fim_middle|>",
        f"<|fim_prefix|><|fim_suffix|>{B}<|fim_middle|>{A}",
    ),
    "starcoder": (f"<fim_prefix>{A}<fim_suffix>{B}<fim_middle>", f"<fim_prefix><fim_suffix>{B}<fim_middle>{A}"),
    "santacoder": (f"<fim-prefix>{A}<fim-suffix>{B}<fim-middle>", f"<fim-prefix><fim-suffix>{B}<fim-middle>{A}"),
    "codellama": (f"<PRE> {A} <SUF>{B} <MID>", f"<PRE>{A}<SUF>{B}<MID>"),
    "deepseek": (f"<｜fim▁begin｜>{A}<｜fim▁hole｜>{B}<｜fim▁end｜>",),
    "codestral": (f"[SUFFIX]{B}[PREFIX]{A}",),
    "seed": (f"<[fim-suffix]>{B}<[fim-prefix]>{A}<[fim-middle]>",),
}
FORMS = [
    pytest.param(name, form, prompt, id=f"{name}-{number}")
    for name, forms in TEMPLATES.items()
    for number, (form, prompt) in enumerate(zip(forms, PROMPTS[name], strict=True))
]


def test_every_template_has_its_prompts() -> None:
    assert PROMPTS.keys() == TEMPLATES.keys()


@pytest.mark.parametrize(("name", "form", "prompt"), FORMS)
def test_what_stands_around_the_blank(name: str, form: FimTemplate, prompt: str) -> None:
    assert form.read(prompt) == Around(A, B)
    assert around(prompt, tuple(TEMPLATES)) == Around(A, B)
    assert around(prompt, tuple(TEMPLATES.keys() - {name})) is None
    assert around("<s>" + prompt, (name,)) == Around(A, B)
    assert named_like(prompt) == name or name in ("glm", "codegeex")  # these two have the same marks


@pytest.mark.parametrize(("name", "form", "prompt"), FORMS)
def test_a_prompt_that_is_not_wholly_of_the_form_stays_text(name: str, form: FimTemplate, prompt: str) -> None:
    assert form.read(prompt.replace(form.marks[0], "")) is None
    assert form.read(prompt + prompt) is None
    assert form.read(f"{form.marks[1]}{A}{form.marks[0]}{B}") is None
    if len(form.marks) == 3:
        assert form.read(prompt.rstrip() + " and more") is None


@pytest.mark.parametrize(("name", "form", "prompt"), FORMS)
@given(before=st.text(), after=st.text())
def test_both_sides_come_back(name: str, form: FimTemplate, prompt: str, before: str, after: str) -> None:
    first, *others = form.marks
    assume(not any(mark in before + after for mark in form.marks))
    sides = (after, before) if form.suffix_first else (before, after)
    rest = "".join(mark + side for mark, side in zip(others, (*sides[1:], ""), strict=False))
    assert form.read(f"{first}{sides[0]}{rest}") == Around(before, after)


def test_a_chat_s_turns_around_a_prompt_are_no_text() -> None:
    system = "<|im_start|>system\nYou are a code completion assistant.<|im_end|>\n"
    turns = f"<|im_start|>user\n{PROMPTS['qwen'][0]}<|im_end|>\n<|im_start|>assistant\n"
    assert around(turns, ("qwen",)) == Around(A, B)
    assert around(system + turns, ("qwen",)) == Around(A, B)
    asked = turns.replace("user\n", "user\nComplete: ")  # words of its own: the first side keeps them
    assert around(asked, ("qwen",)) == Around("Complete: " + A, B)


def test_other_files_are_context() -> None:
    prompt = f"<|repo_name|>r\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\n{PROMPTS['qwen'][0]}"
    sides = around(prompt, ("qwen",))
    assert sides is not None
    assert sides.before.startswith("r\n")
    assert "a.py\nx = 1\n" in sides.before
    assert sides.before.endswith(A)
    assert "<|" not in sides.before


def test_words_that_look_like_codestral_s_marks_stay_text() -> None:
    assert around("x = y[SUFFIX] and y[PREFIX]", tuple(TEMPLATES)) is None


def test_marks_are_found_anywhere() -> None:
    assert named_like(f"Complete this: {PROMPTS['qwen'][0]} Thank you.") == "qwen"
    assert named_like("a <PRE>b<SUF>c<MID> d") == "codellama"
    assert named_like("a <PRE> tag and a [SUFFIX]") is None
