"""An adapter's folder under attack: links that take the place of files and folders between a check and the reading."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.adapters.files import Folder
from model.adapters.reading import read_adapter
from model.adapters.target import AdapterTarget
from model.checkpoint import load
from model.config import CheckpointError
from server.protocols.native.adapters import folder_below
from tests.engine.test_adapters import write_prefix

WEIGHTS = "adapter_model.safetensors"
INSIDE, OUTSIDE = 3, 7  # tokens of the prefixes, by which they are told apart


@pytest.fixture(scope="module")
def target(tiny_checkpoint: Callable[..., Path]) -> AdapterTarget:
    return AdapterTarget(load(tiny_checkpoint()).model)


@pytest.fixture
def root(target: AdapterTarget, tmp_path: Path) -> Path:
    """An adapter two folders below the root, and one that lies outside."""
    write_prefix(tmp_path / "root/team/a", target.model, 0, INSIDE)
    write_prefix(tmp_path / "outside/a", target.model, 1, OUTSIDE)
    return tmp_path / "root"


def replace(place: Path, target: Path) -> None:
    """A link in the place of a file or folder."""
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(target)


@pytest.mark.parametrize("place", ["team", "team/a", f"team/a/{WEIGHTS}", "team/a/adapter_config.json"])
def test_what_is_swapped_after_the_check_is_not_read(root: Path, target: AdapterTarget, place: str) -> None:
    path = root / folder_below(root, "team/a")
    assert len(read_adapter(path, target, root).prefix or ()) == INSIDE
    replace(root / place, root.parent / "outside" / Path(place).relative_to("team"))
    with pytest.raises(CheckpointError, match=r"adapter a: .* lies outside the adapters' folder$"):
        read_adapter(path, target, root)


def test_an_operator_s_own_may_be_anywhere(root: Path, target: AdapterTarget) -> None:
    replace(root / "team", root.parent / "outside")
    assert len(read_adapter(root / "team/a", target).prefix or ()) == OUTSIDE


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(root: Path, target: AdapterTarget) -> None:
    path = root / folder_below(root, "team/a")
    (path / WEIGHTS).unlink()
    os.mkfifo(path / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"adapter a: {WEIGHTS} is not a regular file"):
        read_adapter(path, target, root)


def test_links_within_the_root_are_followed(root: Path, target: AdapterTarget) -> None:
    (root / "blob").write_bytes((root / "team/a" / WEIGHTS).read_bytes())
    replace(root / "team/a" / WEIGHTS, root / "blob")
    assert len(read_adapter(root / "team/a", target, root).prefix or ()) == INSIDE


def test_what_was_opened_is_what_is_read(root: Path) -> None:
    with Folder(root / "team/a", root) as folder:
        before = folder.open("adapter_config.json")
        assert before is not None
        replace(root / "team", root.parent / "outside")
        assert f'"num_virtual_tokens": {INSIDE}' in before.read_text()
        assert folder.open("adapter_config.json") == before
    assert not before.exists()


def test_a_link_that_changes_all_the_time_leads_to_nothing_outside(root: Path, target: AdapterTarget) -> None:
    path, outside, other = root / "team/a", root.parent / "outside/a", root / "team/b"
    path.rename(other)
    ends = threading.Event()

    def swap() -> None:
        while not ends.is_set():
            for target in (outside, other):
                (root / "link").symlink_to(target)
                os.replace(root / "link", path)

    path.symlink_to(other)
    thread = threading.Thread(target=swap)
    thread.start()
    found = set()
    try:
        for _ in range(200):
            try:
                adapter = read_adapter(path, target, root)
                assert adapter.prefix is not None
                assert torch.isfinite(adapter.prefix.keys).all()
                found.add(len(adapter.prefix))
            except CheckpointError:
                found.add(0)
    finally:
        ends.set()
        thread.join()
    assert found == {INSIDE, 0}
