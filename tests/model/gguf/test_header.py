"""The header of a GGUF file: counts, lengths and offsets that lie are refused in one line, without much memory."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.config import CheckpointError
from model.formats.gguf import GGUFSource, opened
from model.gguf.architectures import config_of
from model.gguf.header import Header
from model.gguf.tokenizer import tokenizer_files
from tests.model.gguf.writing import write

SMALL = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 280,
}  # fmt: skip
HUGE = (2**63, 2**60, 2**40, 2**32 - 1, 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole file of a tiny model."""
    return write(tmp_path_factory.mktemp("small") / "small.gguf", sizes=SMALL).path.read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def file(
    entries: list[bytes], tensors: list[bytes], data: int = 256, counts: tuple[int, int] | None = None, version: int = 3
) -> bytes:
    counts = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*entries, *tensors])
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


F32 = [tensor("a", [32], 0, 0)]
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "another file": (b"PK\3\4" + b"\0" * 100, "not a GGUF file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "cut in the header": (file([], F32)[:30], "ends within its header"),
    "cut in the data": (file([], F32, data=100), "an unfinished download"),
    "version 1": (file([], [], version=1), "of version 1"),
    "big-endian": (file([], [], version=3 << 24), "big-endian"),
    "many tensors": (file([], F32, counts=(2**63, 0)), "the number of tensors"),
    "more tensors": (file([], F32, counts=(60000, 0)), "damaged"),
    "many entries": (file([], F32, counts=(1, 2**50)), "the number of metadata entries"),
    "long key": (file([struct.pack("<Q", 2**60)], []), "a text of 1152921504606846976 bytes"),
    "long text": (file([entry("a", 8, struct.pack("<Q", 2**60))], []), "a text of 1152921504606846976 bytes"),
    "text past the end": (file([entry("a", 8, struct.pack("<Q", 2**20))], []), "ends within its header"),
    "name of lines": (file([], [tensor("a\nb", [32], 0, 0)]), "the name 'a\\nb'"),
    "long array": (file([entry("a", 9, struct.pack("<IQ", 4, 2**60))], []), "the length of a 1152921504606846976"),
    "array past the end": (file([entry("a", 9, struct.pack("<IQ", 4, 2**20))], []), "ends within its header"),
    "texts past the end": (file([entry("a", 9, struct.pack("<IQ", 8, 2**20))], []), "ends within its header"),
    "nested array": (file([entry("a", 9, struct.pack("<IQ", 9, 1))], []), "an array of the type 9"),
    "unknown type": (file([entry("a", 77, b"")], []), "unknown type 77"),
    "key twice": (file([entry("a", 0, b"\1")] * 2, []), "a is there twice"),
    "not UTF-8": (file([entry("a", 8, struct.pack("<Q", 2) + b"\xff\xff")], []), "not UTF-8"),
    "alignment 0": (file([entry("general.alignment", 4, struct.pack("<I", 0))], []), "alignment is 0"),
    "alignment 3": (file([entry("general.alignment", 4, struct.pack("<I", 3))], []), "alignment is 3"),
    "alignment of text": (file([entry("general.alignment", 8, text("x"))], []), "alignment is 'x'"),
    "tensor twice": (file([], [*F32, tensor("a", [32], 0, 128)]), "a is there twice"),
    "overlap": (file([], [*F32, tensor("b", [32], 0, 96)]), "a and b overlap"),
    "five dimensions": (file([], [tensor("a", [1] * 5, 0, 0)]), "dimensions 5"),
    "no dimensions": (file([], [tensor("a", [], 0, 0)]), "has the shape []"),
    "no rows": (file([], [tensor("a", [32, 0], 0, 0)]), "has the shape [0, 32]"),
    "overflow": (file([], [tensor("a", [2**32, 2**32], 0, 0)]), "has the shape"),
    "part of a block": (file([], [tensor("a", [48], 2, 0)]), "not blocks of 32 (Q4_0)"),
    "unaligned": (file([], [tensor("a", [8], 0, 8)]), "not at a multiple of 32"),
    "offset past the end": (file([], [tensor("a", [8], 0, 2**62)]), "an unfinished download"),
    "unread kind": (file([], [tensor("a", [256], 10, 0)]), "stored as Q2_K, which is not read"),
    "unknown kind": (file([], [tensor("a", [256], 12345, 0)]), "stored as type 12345, which is not read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_lies_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    content, reason = REFUSED[name]
    path = tmp_path / "own.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        Header.read(path)
    assert reason in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Header.read(tmp_path / "own.gguf")


def read_all(path: Path) -> None:
    """Everything that a load takes from a file, except the network."""
    tokenizer_files(opened(path))
    config_of(opened(path))
    source = GGUFSource(path)
    for name in source.entries:
        source.read(name)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A cut, or a few numbers or bytes that are others, most of them in the header."""
    if draw(st.integers(0, 9)) == 0:
        keep = draw(st.floats(0, 1))
        return lambda content: content[: int(len(content) * keep)]
    places = draw(
        st.lists(st.tuples(st.floats(0, 0.4), st.integers(0, 255) | st.sampled_from(HUGE)), min_size=1, max_size=3)
    )

    def damaged(content: bytes) -> bytes:
        own = bytearray(content)
        for share, value in places:
            at = int(len(own) * share**2)
            new = struct.pack("<Q", value) if value > 255 else bytes([value])
            own[at : at + len(new)] = new
        return bytes(own)

    return damaged


@given(change=damage())
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused_in_one_line(
    small: bytes, tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(change(small))
    reason = ""
    try:
        read_all(path)
    except CheckpointError as error:
        reason = str(error)
    assert "\n" not in reason
    assert not reason or str(path) in reason


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_take_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "own.gguf"
    path.write_bytes(REFUSED[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            Header.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
