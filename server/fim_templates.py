"""Templates for other models, which clients apply themselves: marks in a prompt around its blank.

A prompt with such marks is one blank between two texts. The server reads it as that, and the engine lays it out for
this model; the model never sees the marks. The forms are those on the models' own cards.
"""

import re
from dataclasses import dataclass

from model.sentinels import SENTINELS

# What may stand around a whole prompt: the start token, and the turns of CodeGeeX4 and of ChatML. What a system turn
# says is for a model that chats.
OPENING = re.compile(
    r"^(?:<s>|<｜begin▁of▁sentence｜>|<\|user\|>\n?"
    r"|<\|im_start\|>system\n(?:(?!<\|im_end\|>).)*<\|im_end\|>\n?|<\|im_start\|>user\n)+",
    re.DOTALL,
)
CLOSING = re.compile(r"(?:<\|assistant\|>\n?|<\|im_end\|>\n?<\|im_start\|>assistant\n?)?\s*")
# Marks of files before the one with the blank: their text is context.
FILES = re.compile(r"<\|?(?:repo_name|reponame|file_sep|filename)\|?>")


@dataclass(frozen=True, slots=True)
class Around:
    """The texts on both sides of a blank."""

    before: str
    after: str


@dataclass(frozen=True, slots=True)
class FimTemplate:
    """A form: its marks in the order of the prompt. `suffix_first`: the text behind the blank comes first."""

    marks: tuple[str, ...]
    suffix_first: bool = False

    def has_marks(self, prompt: str) -> bool:
        """Whether a prompt has all marks, anywhere."""
        return all(mark.strip() in prompt for mark in self.marks)

    def read(self, prompt: str) -> Around | None:
        """The two sides, if the whole prompt has this form. Text of other files joins the first side."""
        if any(prompt.count(mark) != 1 for mark in self.marks):
            return None
        parts, rest = [], prompt
        for mark in self.marks:
            part, found, rest = rest.partition(mark)
            if not found:
                return None
            parts.append(part)
        head, first, *more = [*parts, rest]
        second, *closing = more
        head = OPENING.sub("", head)
        # Without a mark at its end only its beginning tells a prompt from a text that has such words.
        if not CLOSING.fullmatch(closing[0] if closing else head):
            return None
        before, after = (second, first) if self.suffix_first else (first, second)
        head = FILES.sub("\n", head).lstrip("\n")
        return Around(head + before, after)


def _either_order(prefix: str, suffix: str, middle: str) -> tuple[FimTemplate, ...]:
    """The two forms of StarCoder's card: the text before the blank comes first, or last."""
    return FimTemplate((prefix, suffix, middle)), FimTemplate((prefix + suffix, middle), suffix_first=True)


# The forms of each name; the first that reads a prompt has it.
TEMPLATES: dict[str, tuple[FimTemplate, ...]] = {
    "glm": (FimTemplate(("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>")),),
    "codegeex": (FimTemplate(("<|code_suffix|>", "<|code_prefix|>", "<|code_middle|>"), suffix_first=True),),
    "qwen": _either_order(*SENTINELS["qwen"]),
    "starcoder": _either_order(*SENTINELS["starcoder"]),
    "santacoder": _either_order(*SENTINELS["santacoder"]),
    # The card's marks have spaces; some clients leave them out.
    "codellama": (FimTemplate(("<PRE> ", " <SUF>", " <MID>")), FimTemplate(("<PRE>", "<SUF>", "<MID>"))),
    "deepseek": (FimTemplate(SENTINELS["deepseek"]),),
    "codestral": (FimTemplate(("[SUFFIX]", "[PREFIX]"), suffix_first=True),),
    "seed": (FimTemplate(("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>"), suffix_first=True),),
}


def around(prompt: str, names: tuple[str, ...]) -> Around | None:
    """The two sides of a prompt in one of these forms; None for another prompt."""
    forms = (form for name in names for form in TEMPLATES[name])
    return next((sides for form in forms if (sides := form.read(prompt)) is not None), None)


def named_like(prompt: str) -> str | None:
    """The name of a template whose marks are all in a prompt; None if there is none."""
    return next((name for name, forms in TEMPLATES.items() if any(form.has_marks(prompt) for form in forms)), None)
