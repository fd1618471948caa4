"""Patterns against Python's `re.fullmatch` over all short texts, and the reasons of those that are refused."""

import itertools
import re

import pytest

from engine.regex.automaton import Automaton
from engine.regex.child import compiled
from engine.regex.compiler import compile_regex
from engine.requests import RequestError
from quant.usage import UsageError

LETTERS = "abA\n #"
TEXTS = ["".join(t) for size in range(5) for t in itertools.product(LETTERS, repeat=size)]
TEXTS += [
    "yes",
    "no",
    "YES",
    "yes\n",
    "\nyes",
    "yesno",
    "n",
    "1900",
    "é",
    "a\nb\na",
    "aaaaa",
    "a-b",
    "]",
    "^",
    "$",
    "a$",
]
PATTERNS = [
    "^yes$|^no$", "^a|^b", "(?i)^yes$", "(?m)^a$", "(?x)a b # note", "^(?:a|b)$", "(^a$)", "(^a|^b)$", "^(a$|b$)",
    "(?i:^yes$)", "^^a$$", "^$", "^", "$", "", "a|", "|a", "^a$|", "\\Aa\\Z", "(?s)^.$", "^.$", "(?m)^a$\\n^b$",
    "(?m)(?:a\\n)*^b", "(?m)a$|\\n", "(?x) ^ a $ | ^ b $ # either", "(?x)(a # one\n|b)", "(?x)\\#\\ ", "[$^]", "[]a]",
    "[^]a]", "\\^|\\$", "a\\$$", "a(?#c)*", "(?P<n>^a)b?$", "(?:^a)b{0,2}$", "a*b*$", "(?i)a(?-i:b)", "(?:(?:^a))|b",
    "a+?b*?a??b{1,2}?", "[+]+", "\\++", "(?:a+)+b",
    "^(?:1[89][0-9]{2}|no)$", "[^a]$", "a.?b*?$", "(?m)^(?:a|b)$(?:\\n^(?:a|b)$)*", "(?is)^y.*", "a{2}|b{1,2}A{0,}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_it_does_in_python(pattern: str) -> None:
    automaton, reference = Automaton.read(compiled(pattern)), re.compile(pattern)
    for text in TEXTS:
        # Python's $ stands before a last line's end too, which no text of one line has.
        found = automaton.accepting[automaton.after(automaton.start, text.encode())]
        assert found == (reference.fullmatch(text) is not None), text


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("a^b", "an anchor, the ^ at character 2, is not at the start of the text"),
        ("a*^b", "an anchor, the ^ at character 3, is not at the start of the text"),
        ("(^a)+", "an anchor, the ^ at character 2, is not at the start of the text"),
        ("(?m)b\\Aa", "an anchor, the \\A at character 6, is not at the start of the text"),
        ("a\\Zb", "an anchor, the \\Z at character 2, is not at the end of the text"),
        ("a$b", "a part of it matches no text, such as what stands behind a $"),
        ("a(?=b)", "it has look-ahead"),
        ("(?<!a)b", "it has look-behind"),
        ("(a)\\1", "it has a back-reference"),
        ("(?P<n>a)(?P=n)", "it has a back-reference"),
        ("(?>a)b", "it has an atomic group"),
        *((f"a{repeat}+a", f"it has a possessive quantifier, {repeat}+") for repeat in ("+", "*", "?", "{1,2}")),
        ("(a)?(?(1)b|A)", "it has a condition"),
        ("(?a)a", "it has the flag a"),
        ("a{,3}", "it has {,3}, which has no least number"),
        ("\\ba", "a word boundary must be of ASCII words"),
        ("(a", "the ( at character 1 is not closed"),
        ("a)|(?:b", "the ) at character 2 closes nothing"),
        ("[a", "the [ at character 1 is not closed"),
        ("a\\", "a \\ at the end escapes nothing"),
        ("a{2,1}", "not valid in the syntax of Rust's regex crate"),
    ],
)
def test_what_is_refused_is_refused_for_its_own_reason(pattern: str, reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        compiled(pattern)


def test_a_pattern_of_many_groups_in_each_other_is_refused() -> None:
    with pytest.raises(RequestError, match="nested too deeply"):
        compile_regex("(" * 500 + ")" * 500)
