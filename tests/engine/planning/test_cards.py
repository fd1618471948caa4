"""Cards: the table that comes with the package, lists of devices, and files of one's own."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.planning.cards import CARDS, Card, CardError, devices, plain, read_cards

OWN = {
    "memory_gib": 16, "bandwidth_gb_s": 400, "float_tflops": 50, "int8_tops": 100, "link_gb_s": 10, "hop_us": 3,
    "capability": 8.9,
}  # fmt: skip


def written(folder: Path, text: str, name: str = "cards.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_cards_that_the_published_times_are_of_are_there() -> None:
    names = {card.name for card in read_cards().values()}
    wanted = "RTX3090 RTX2080Ti RTX4090 A100-40 A100-80 V100-16 V100-32 H100 H200 T4 A10 L4 L40S CPU".split()  # noqa: SIM905
    assert names >= set(wanted)


def test_no_card_reads_its_memory_slower_than_its_link() -> None:
    for card in read_cards().values():
        assert card.bandwidth_gb_s > card.link_gb_s, card.name
        # Inference was never worth it on a card that reads more bytes than it multiplies numbers.
        assert card.float_tflops * 1e12 > card.bandwidth_gb_s * 1e9, card.name
        assert (card.kind == "cpu") == (card.name == "CPU")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("4xRTX3090", ["RTX3090"] * 4),
        ("RTX3090", ["RTX3090"]),
        ("2 x rtx 3090, a100_80", ["RTX3090", "RTX3090", "A100-80"]),
        ("8XRTX2080Ti", ["RTX2080Ti"] * 8),
        ("2×T4", ["T4"] * 2),
    ],
)
def test_a_list_of_devices_names_them_as_people_write_them(text: str, names: list[str]) -> None:
    assert [card.name for card in devices(text, read_cards())] == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a list of devices"),
        ("4x", "no card '4x'; the cards are RTX3090, "),
        ("0xRTX3090", "not a list of devices"),
        ("-1xRTX3090", "no card '-1xRTX3090'"),
        ("RTX3090,", "not a list of devices"),
        ("RTX9999", "no card 'RTX9999'"),
        ("1025xT4", "more than 1024 devices"),
        ("999999999xT4", "more than 1024 devices"),
        ("RTX3090,CPU", "CPUs and GPUs cannot share one model"),
        ("3090\nx", "not a list of devices"),
    ],
)
def test_what_is_no_list_of_devices_is_refused(text: str, says: str) -> None:
    with pytest.raises(CardError) as raised:
        devices(text, read_cards())
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_ranks_on_one_machine_share_what_it_has() -> None:
    whole, *_ = devices("CPU", read_cards())
    parts = devices("4xCPU", read_cards())
    assert len(parts) == 4
    assert sum(part.memory_gib for part in parts) == pytest.approx(whole.memory_gib)
    assert sum(part.bandwidth_gb_s for part in parts) == pytest.approx(whole.bandwidth_gb_s)
    assert parts[0].link_gb_s == whole.link_gb_s


@pytest.mark.parametrize("name", ["cards.toml", "cards.json"])
def test_a_file_adds_cards_and_replaces_those_of_a_name(tmp_path: Path, name: str) -> None:
    tables = {"My Card": OWN, "rtx-3090": OWN | {"memory_gib": 48}}
    if name.endswith("json"):
        text = json.dumps(tables)
    else:
        text = "\n".join(
            f'["{card}"]\n' + "\n".join(f"{field} = {value}" for field, value in table.items())
            for card, table in tables.items()
        )
    cards = read_cards(written(tmp_path, text, name))
    assert cards["mycard"] == Card(name="My Card", **OWN)  # type: ignore[arg-type]
    assert cards["rtx3090"].memory_gib == 48
    assert cards.keys() == {*read_cards(), "mycard"}


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("[", "cards.toml", "not TOML"),
        ("{", "cards.json", "not JSON"),
        ("[]", "cards.json", "not an object of cards"),
        ('{"A": 1}', "cards.json", "A is not a table"),
        (json.dumps({"A": OWN | {"memory": 3}}), "cards.json", "A: no such field: 'memory'"),
        (json.dumps({"A": {k: v for k, v in OWN.items() if k != "hop_us"}}), "cards.json", "A: hop_us is missing"),
        (json.dumps({"A": OWN | {"hop_us": 0}}), "cards.json", "A: hop_us must be a positive number"),
        (json.dumps({"A": OWN | {"link_gb_s": float("nan")}}), "cards.json", "link_gb_s must be"),
        (json.dumps({"A": OWN | {"link_gb_s": float("inf")}}), "cards.json", "link_gb_s must be"),
        (json.dumps({"A": OWN | {"link_gb_s": "10"}}), "cards.json", "link_gb_s must be"),
        (json.dumps({"A": OWN | {"link_gb_s": True}}), "cards.json", "link_gb_s must be"),
        (json.dumps({"A": OWN | {"link_gb_s": 10**400}}), "cards.json", "link_gb_s must be"),
        (json.dumps({"A": OWN | {"shared": 1}}), "cards.json", "shared must be true or false"),
        (json.dumps({"A": OWN, "a": OWN}), "cards.json", "a occurs twice"),
        (json.dumps({"2xA": OWN}), "cards.json", "'2xA' is not a valid name"),
        (json.dumps({"A,B": OWN}), "cards.json", "'A,B' is not a valid name"),
        (json.dumps({"": OWN}), "cards.json", "'' is not a valid name"),
        (json.dumps({"A\nB": OWN}), "cards.json", "'A\\nB' is not a valid name"),
        (json.dumps({"A": OWN | {"a\nb": 1}}), "cards.json", "A: no such field: 'a\\nb'"),
        ("[" * 100_000, "cards.json", "not JSON"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_a_line(tmp_path: Path, text: str, name: str, says: str) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(CardError) as raised:
        read_cards(path)
    assert says in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    for path, says in (
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin.toml", "not UTF-8"),
    ):
        with pytest.raises(CardError, match=says):
            read_cards(path)


def test_the_package_s_table_is_a_file_of_the_same_form(tmp_path: Path) -> None:
    assert read_cards(written(tmp_path, CARDS.read_text("utf-8"))) == read_cards()


@given(st.text(max_size=40))
def test_any_text_is_devices_or_one_line(text: str) -> None:
    said = ""
    try:
        assert devices(text, {plain("T4"): Card(name="T4", **OWN)})  # type: ignore[arg-type]
    except CardError as error:
        said = str(error)
    assert "\n" not in said


def test_every_field_of_a_card_is_explained_in_the_table() -> None:
    head = CARDS.read_text("utf-8").partition("[")[0]
    card = read_cards()["rtx3090"]
    assert [name for name in asdict(card) if name != "name" and f"# {name} " not in head] == []
