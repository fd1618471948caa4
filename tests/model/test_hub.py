"""Names on the Hugging Face hub: the cache, and downloads from a double of the hub."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from model.checkpoint import load
from model.config import CheckpointError
from model.hub import folder_of, name_of
from model.outline import Outline
from tests.hub import Hub, Repo, commit_of, hub_double

NAME = Path("org/model-1.5")
CODE = {"modeling_glm.py": b"raise SystemExit", "tokenization.py": b"", "LICENSE.py": b"", "code/LICENSE": b""}
Files = dict[str, bytes]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_double() as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        template = double.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what is written at a time
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield double


@pytest.fixture(scope="module")
def files(tiny_checkpoint: Callable[..., Path]) -> Files:
    return read(tiny_checkpoint())


@pytest.fixture(scope="module")
def sharded(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same model in two files."""
    folder = tmp_path_factory.mktemp("sharded")
    shutil.copytree(tiny_checkpoint(), folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    places: dict[str, str] = {}
    for number, half in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / file)
        places |= dict.fromkeys(half, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return read(folder)


def read(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def cached(cache: Path, files: Files, name: Path = NAME, branch: str = "main") -> Path:
    """A snapshot in the cache, as huggingface_hub lays it out: links to blobs."""
    root = cache / f"models--{str(name).replace('/', '--')}"
    commit = commit_of(files)
    (root / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    (root / "blobs").mkdir(exist_ok=True)
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for number, (file, data) in enumerate(files.items()):
        blob = root / "blobs" / f"{commit}{number}"
        blob.write_bytes(data)
        (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        folder_of(*args, **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    return message


class TestCache:
    def test_a_name_is_its_main_snapshot(self, cache: Path, files: Files) -> None:
        snapshot = cached(cache, files)
        assert folder_of(NAME) == snapshot == Path(huggingface_hub.snapshot_download(str(NAME), local_files_only=True))
        assert name_of(snapshot) == str(NAME)
        assert load(snapshot).name == str(NAME)
        assert Outline.read(str(NAME)).name == str(NAME)

    def test_a_name_without_an_organisation(self, cache: Path, files: Files) -> None:
        snapshot = cached(cache, files, Path("gpt2"))
        assert folder_of(Path("gpt2")) == snapshot
        assert name_of(snapshot) == "gpt2"

    @pytest.mark.parametrize("branch", ["v1", "pr/3"])
    def test_a_revision(self, cache: Path, files: Files, branch: str) -> None:
        main = cached(cache, files)
        other = cached(cache, {**files, "NOTICE": b""}, branch=branch)
        assert folder_of(NAME, branch) == other
        assert folder_of(NAME, other.name) == other
        assert folder_of(NAME) == main
        assert refusal(NAME, "v2").startswith(f"{NAME}, revision v2: no such folder, and not in the Hugging Face cache")

    @pytest.mark.parametrize("revision", ["../../x", "", "/etc", "a b", "-x", "a/../b"])
    def test_what_is_no_revision(self, cache: Path, files: Files, revision: str) -> None:
        cached(cache, files)
        assert refusal(NAME, revision) == f"--revision {revision!r}: a branch, a tag or a commit is needed"

    def test_the_root_of_a_name_is_its_main_snapshot(self, cache: Path, files: Files) -> None:
        snapshot = cached(cache, files)
        root = snapshot.parent.parent
        assert folder_of(root) == snapshot
        (root / "refs" / "main").unlink()
        assert refusal(root) == f"{root}: has no snapshot of main"

    def test_a_folder_goes_first(self, cache: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        cached(cache, files)
        monkeypatch.chdir(cache.parent)
        NAME.mkdir(parents=True)
        assert folder_of(NAME) == NAME
        assert refusal(NAME, "main").startswith(f"{NAME}: a folder has no revisions")

    def test_what_is_not_there(self, cache: Path) -> None:
        says = f"{NAME}: no such folder, and not in the Hugging Face cache {cache}; --download fetches it from the hub"
        assert refusal(NAME) == says

    @pytest.mark.parametrize("path", ["/no/where", "a/b/c", "../x/y", "a--b/c", "x..y", "-x"])
    def test_what_can_be_no_name_stays_a_path(self, cache: Path, path: str) -> None:
        assert folder_of(Path(path), download=True) == Path(path)

    @pytest.mark.parametrize("lost", ["config.json", "model-00002-of-00002.safetensors", "tokenizer.model"])
    def test_a_part_that_is_missing(self, cache: Path, sharded: Files, lost: str) -> None:
        snapshot = cached(cache, {name: data for name, data in sharded.items() if name != lost})
        part = "tokenizer" if lost == "tokenizer.model" else lost
        assert refusal(NAME) == f"{NAME}: {snapshot} has no {part}; --download fetches it from the hub"

    def test_a_part_that_is_not_needed(self, cache: Path, files: Files) -> None:
        snapshot = cached(cache, {"config.json": files["config.json"]})
        assert folder_of(NAME, parts=("config",)) == snapshot
        assert refusal(NAME).endswith("has no weights; --download fetches it from the hub")

    def test_a_blob_that_was_deleted(self, cache: Path, files: Files) -> None:
        snapshot = cached(cache, files)
        (snapshot / "model.safetensors").resolve().unlink()
        assert "has no weights" in refusal(NAME)


class TestDownload:
    @pytest.fixture(params=["single", "sharded"])
    def content(self, request: pytest.FixtureRequest, files: Files, sharded: Files) -> Files:
        return files if request.param == "single" else sharded

    def test_exactly_what_is_read_is_fetched(self, hub: Hub, content: Files) -> None:
        others = {"README.md": b"#", "pytorch_model.bin": b"x" * 9000, "tf_model.h5": b"y", "onnx/model.onnx": b"z"}
        hub.repos[str(NAME)] = Repo({**content, "LICENSE": b"Apache", **CODE, **others})
        folder = folder_of(NAME, download=True)
        assert read(folder) == {**content, "LICENSE": b"Apache"}
        assert hub.fetched() == {*content, "LICENSE"}
        assert load(folder).name == str(NAME)

    def test_what_is_in_the_cache_is_not_asked_for_again(self, hub: Hub, content: Files) -> None:
        hub.repos[str(NAME)] = Repo(content)
        folder = folder_of(NAME, download=True)
        hub.asked.clear()
        assert folder_of(NAME, download=True) == folder_of(NAME) == folder
        assert hub.asked == []

    def test_a_pickle_where_there_are_no_safetensors(self, hub: Hub, files: Files) -> None:
        kept = {name: data for name, data in files.items() if name != "model.safetensors"}
        hub.repos[str(NAME)] = Repo({**kept, "pytorch_model.bin": b"x" * 5000, **CODE})
        folder_of(NAME, download=True)
        assert hub.fetched() == {*kept, "pytorch_model.bin"}

    def test_a_plan_fetches_the_config_alone(self, hub: Hub, files: Files) -> None:
        hub.repos[str(NAME)] = Repo({**files, **CODE})
        assert Outline.read(str(NAME), download=True).architecture.num_layers == 2
        assert hub.fetched() == {"config.json"}
        hub.asked.clear()
        folder_of(NAME, download=True)
        assert hub.fetched() == files.keys() - {"config.json"}

    def test_a_tokenizer_alone(self, hub: Hub, files: Files) -> None:
        hub.repos[str(NAME)] = Repo(files)
        folder = folder_of(NAME, download=True, parts=("tokenizer",))
        assert (folder / "tokenizer.model").exists()
        assert "model.safetensors" not in hub.fetched()

    @pytest.mark.parametrize("pinned", ["v1", "commit"])
    def test_a_revision(self, hub: Hub, files: Files, pinned: str) -> None:
        old = {**files, "NOTICE": b"old"}
        hub.repos[str(NAME)] = Repo(files, {"v1": old})
        revision = commit_of(old) if pinned == "commit" else pinned
        folder = folder_of(NAME, revision, download=True)
        assert read(folder) == old
        assert folder_of(NAME, revision) == folder
        assert folder.name == commit_of(old)
        assert "not in the Hugging Face cache" in refusal(NAME)

    def test_an_interrupted_file_goes_on_where_it_broke_off(self, hub: Hub, files: Files) -> None:
        hub.repos[str(NAME)] = Repo(files)
        hub.cut.add("model.safetensors")
        assert read(folder_of(NAME, download=True)) == files
        ranges = [asked for asked in hub.asked if asked[2] is not None]
        half = len(files["model.safetensors"]) // 2 // 1024 * 1024
        assert [asked[2] for asked in ranges] == [f"bytes={half}-"]

    def test_the_rest_of_an_interrupted_download(self, hub: Hub, sharded: Files) -> None:
        hub.repos[str(NAME)] = Repo(sharded)
        folder = folder_of(NAME, download=True)
        last = folder / "model-00002-of-00002.safetensors"
        last.resolve().unlink()
        last.unlink()
        hub.asked.clear()
        assert folder_of(NAME, download=True) == folder
        assert hub.fetched() == {last.name}
        assert read(folder) == sharded

    def test_offline(self, hub: Hub, cache: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos[str(NAME)] = Repo(files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        says = f"{NAME}: not whole in the Hugging Face cache, and HF_HUB_OFFLINE forbids a download"
        assert refusal(NAME, download=True) == says
        snapshot = cached(cache, files)
        assert folder_of(NAME, download=True) == snapshot
        assert hub.asked == []


class TestRefusal:
    def test_a_name_that_the_hub_does_not_have(self, hub: Hub) -> None:
        access = "set HF_TOKEN, or type: hf auth login"
        assert refusal(NAME, download=True) == f"{NAME}: not on {hub.url}, or private: for a private one {access}"

    def test_a_gated_model(self, hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.repos[str(NAME)] = Repo(files, access="GatedRepo")
        says = f"{NAME}: gated; accept its conditions at {hub.url}/{NAME}, then set HF_TOKEN, or type: hf auth login"
        assert refusal(NAME, download=True) == says
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert read(folder_of(NAME, download=True)) == files

    def test_a_revision_that_there_is_not(self, hub: Hub, files: Files) -> None:
        hub.repos[str(NAME)] = Repo(files)
        assert refusal(NAME, "v9", download=True) == f"{NAME}: has no revision 'v9' on {hub.url}"

    def test_a_hub_that_fails(self, hub: Hub) -> None:
        hub.answers = 501
        says = f"{NAME}: {hub.url} answered 501; the same command goes on with the files it lacks"
        assert refusal(NAME, download=True) == says

    def test_a_hub_that_is_not_there(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert refusal(NAME, download=True).startswith(f"{NAME}: the download from http://127.0.0.1:9 failed (")

    def test_a_cache_that_cannot_be_written(self, hub: Hub, cache: Path, files: Files) -> None:
        hub.repos[str(NAME)] = Repo(files)
        cache.write_text("a file")
        assert refusal(NAME, download=True).startswith(f"{NAME}: the download from {hub.url} failed (")

    @pytest.mark.parametrize(
        ("held", "says"),
        [
            ({"a.Q4_K_M.gguf": b"", "a.Q8_0.gguf": b""}, "holds a.Q4_K_M.gguf, a.Q8_0.gguf and no safetensors: serve"),
            ({"tf_model.h5": b""}, "holds tf_model.h5 and no safetensors: TensorFlow's weights"),
            ({"adapter_config.json": b"", "adapter_model.safetensors": b""}, "an adapter (adapter_config.json)"),
            ({}, "holds config.json, tokenizer.model, tokenizer_config.json and no weights"),
        ],
    )
    def test_a_repository_without_weights_to_read(self, hub: Hub, files: Files, held: Files, says: str) -> None:
        small = {name: data for name, data in files.items() if name != "model.safetensors"}
        hub.repos[str(NAME)] = Repo({**small, **held})
        assert refusal(NAME, download=True).startswith(f"{NAME}: {says}")
        assert hub.fetched() == set()
