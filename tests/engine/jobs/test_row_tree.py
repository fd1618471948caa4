"""The tree of rows against its paths taken one by one."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.jobs.row_tree import Branch, Path, num_rows, roots
from engine.schedule.batch import Scored
from engine.schedule.sequence import Context, Sequence

Words = list[list[int]]
words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


def path(word: list[int], context: tuple[int, ...] = (7,), whole: bool = False) -> Path:
    """A start row and a row for each token; the last row predicts the end, 9."""
    rows = [(token, 5, number) for number, token in enumerate([8, *word])]
    return Path(context, rows, [*word, 9], whole)


def computed(branch: Branch[Path], sequence: Sequence, found: list[tuple[int, ...]]) -> None:
    """Gives each target the number of rows before it as its log-probability, as a runner would, and goes on."""
    before = len(sequence.token_ids)
    branch.extend(sequence)
    assert before == branch.start
    found.extend(tuple(sequence.token_ids[: n + 1]) for n in range(before, branch.end))
    targets = [(min(n, branch.end - 1), target) for n, target in enumerate(sequence.targets)]
    branch.take([Scored(target, -float(row), ()) if target >= 0 else None for row, target in targets])
    for child in branch.children():
        own = Sequence(Context(()), "scores", 0.0)
        for row in branch.paths[0].rows[: branch.end]:
            own.push(*row)
        computed(child, own, found)


@given(words)
def test_each_path_gets_its_targets_and_no_row_is_computed_twice(texts: Words) -> None:
    paths = [path(word) for word in texts]
    branches = roots(paths)
    found: list[tuple[int, ...]] = []
    for branch in branches:
        computed(branch, Sequence(Context(()), "scores", 0.0), found)
    prefixes = {(8, *word[:n]) for word in texts for n in range(len(word) + 1)}
    assert len(found) == len(set(found)) == len(prefixes) == num_rows(branches)
    assert set(found) == prefixes
    for own in paths:
        assert [scored.token_id for scored in own.found] == own.targets
        assert [scored.logprob for scored in own.found] == [-float(n) for n in range(len(own.rows))]


@given(words)
def test_branches_part_where_rows_or_ends_do(texts: Words) -> None:
    left = roots([path(word) for word in texts])
    while left:
        branch = left.pop()
        assert all(a.rows[: branch.end] == b.rows[: branch.end] for a, b in pairwise(branch.paths))
        children = branch.children()
        assert len(branch.ended) + sum(len(child.paths) for child in children) == len(branch.paths)
        assert branch.ended or len(children) > 1
        left += children


def test_other_contexts_and_whole_texts_share_nothing() -> None:
    same, other, alone = path([1, 2]), path([1, 2], (6,)), path([1, 2], whole=True)
    assert [branch.paths for branch in roots([alone, same, other, alone])] == [[alone], [alone], [same], [other]]


def test_targets_that_nobody_asks_for_are_left_out() -> None:
    hidden = Path((), [(1, 0, 0), (2, 1, 0)], [-1, 4], whole=True)
    (branch,) = roots([hidden])
    sequence = Sequence(Context(()), "scores", 0.0)
    branch.extend(sequence)
    branch.take([None, Scored(4, -1.0, ())])
    assert sequence.targets == [-1, 4]
    assert hidden.found == [Scored(4, -1.0, ())]
