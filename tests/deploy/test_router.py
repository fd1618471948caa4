"""Where requests go: one order for a context, few moves when replicas change, and no replica with all the load."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from deploy.ray.context import context_key
from deploy.ray.router import groups, is_loaded, ranked
from engine.requests import Fill, Mask, Score

NAMES = ["a1", "b2", "c3", "d4"]
TEXT = ("The ", Mask("[MASK]"), " sat.")
loads_of_replicas = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 300), min_size=1)


def test_the_order_is_the_context_s_own_and_not_that_of_the_names() -> None:
    assert ranked("key", NAMES) == ranked("key", NAMES[::-1])
    firsts = Counter(ranked(f"key {i}", NAMES)[0] for i in range(4000))
    assert set(firsts) == set(NAMES)
    assert all(900 < count < 1100 for count in firsts.values())


def test_a_lost_replica_moves_only_its_own_contexts() -> None:
    for i in range(200):
        before, after = ranked(f"key {i}", NAMES), ranked(f"key {i}", NAMES[:-1])
        assert after == [name for name in before if name != NAMES[-1]]


def test_idle_replicas_are_asked_in_the_context_s_order() -> None:
    order = ranked("key", NAMES)
    idle = dict.fromkeys(NAMES, 0)
    assert groups("key", 0, idle)[:2] == [order[:1], order[1:3]]
    assert groups("key", 1, idle)[:2] == [order[1:2], order[2:4]]


def test_a_loaded_replica_is_passed_over_for_the_next_two() -> None:
    home, *others = ranked("key", NAMES)
    loads = {**dict.fromkeys(NAMES, 0), home: 40}
    assert groups("key", 0, loads)[0] == others[:2]


@given(loads_of_replicas, st.text(), st.integers(0, 3))
def test_some_replica_is_always_there_to_ask(loads: dict[str, int], key: str, attempt: int) -> None:
    chosen = groups(key, attempt, loads)
    assert set(chosen[-1]) == set(loads)
    assert all(chosen)
    # The least loaded one is never too loaded to be asked.
    assert not is_loaded(min(loads, key=loads.__getitem__), loads)


def test_a_fill_and_a_score_of_one_text_share_their_key() -> None:
    def key(request: Fill | Score) -> str:
        return context_key(request)

    fill = key(Fill((TEXT,)))
    assert fill == key(Fill((TEXT,), n=4, max_tokens=(8,)))
    assert fill == key(Score(text=TEXT, spans=(("cat",), ("dog",))))
    assert key(Score(context=TEXT, targets=("cat",))) == fill
    others: list[Fill | Score] = [
        Fill((TEXT,), tenant="ann"),
        Fill((TEXT, TEXT)),
        Fill((("The [MASK] sat.",),)),
        Score(("The",), None),
    ]
    pair = [Score(sentence_a="a", sentence_b="b"), Score(sentence_a="a", sentence_b="c")]
    assert len({fill, *map(key, others), *map(key, pair)}) == 7
