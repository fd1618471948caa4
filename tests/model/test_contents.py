"""A folder without anything to read is refused in one line, which names what is there and the way out."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import Description, load
from model.config import CheckpointError
from model.families.bert import BERT_NAMING
from model.outline import Outline
from model.weights import Weights

GOLDEN = Path(__file__).parents[1] / "golden"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
LFS = "a Git LFS pointer, not the file; fetch the file with: git lfs pull"
FLAX = "Flax's weights; transformers 4 converts them: from_pretrained(…, from_flax=True)"


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint(), tmp_path / "model")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message
    return message


class TestWeightsOfOtherForms:
    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (["a.Q4_K_M.gguf", "other.pth"], "holds a.Q4_K_M.gguf and no safetensors: serve that file"),
            (
                ["a.gguf", "b.gguf", "c.gguf", "d.gguf", "e.pth"],
                "a.gguf, b.gguf, c.gguf and 1 more and no safetensors: serve one",
            ),
            (["model.fp16.safetensors"], "holds model.fp16.safetensors: rename it to model.safetensors"),
            (
                ["a.safetensors", "b.safetensors"],
                "holds a.safetensors, b.safetensors: rename the one to serve to model.",
            ),
            (
                ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
                "model-00002-of-00002.safetensors: model.safetensors.index.json is missing",
            ),
            (
                ["model-00002-of-00004.safetensors"],
                "model.safetensors.index.json is missing, and 3 of the 4 files",
            ),
            (["pytorch_model-00001-of-00001.bin"], "pytorch_model.bin.index.json is missing"),
            (
                ["weights.bin", "training_args.bin"],
                "holds weights.bin and no safetensors: rename it to pytorch_model.bin",
            ),
            (["training_args.bin"], "tokenizer_config.json and 1 more and no weights"),
            (
                ["tf_model.h5"],
                "holds tf_model.h5 and no safetensors: TensorFlow's weights; transformers 4 converts them",
            ),
            (["flax_model.msgpack"], f"holds flax_model.msgpack and no safetensors: {FLAX}"),
            (["model.onnx"], "holds model.onnx and no safetensors: a graph for ONNX; get the safetensors"),
            (
                ["model.ckpt.index", "model.ckpt.meta"],
                "model.ckpt.meta and no safetensors: a checkpoint of TensorFlow or",
            ),
            (["consolidated.00.pth", "params.json"], "the authors' own format; get the model in transformers' form"),
            (
                ["model.pth"],
                "holds model.pth and no safetensors: if it has the weights, rename it to pytorch_model.bin",
            ),
            ([], "holds config.json, tokenizer.model, tokenizer_config.json and no weights"),
        ],
    )
    def test_are_named_with_the_way_out(self, folder: Path, files: list[str], says: str) -> None:
        (folder / "model.safetensors").unlink()
        for file in files:
            (folder / file).touch()
        message = refusal(folder)
        assert message.startswith(f"{folder}: ")
        assert says in message

    def test_shards_that_the_index_names(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        index.write_text(
            json.dumps({"weight_map": {f"t{n}": f"model-{n:05}-of-00005.safetensors" for n in range(1, 6)}})
        )
        (folder / "model.safetensors").rename(folder / "model-00003-of-00005.safetensors")
        shown = ", ".join(f"model-{n:05}-of-00005.safetensors" for n in (1, 2, 4))
        assert refusal(folder) == f"{index}: names {shown} and 1 more, not in the folder"


class TestWhatIsNoModel:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        assert refusal(tmp_path) == f"{tmp_path}: holds no files"

    def test_a_folder_around_the_model(self, folder: Path) -> None:
        assert refusal(folder.parent) == f"{folder.parent}: holds no files; {folder} has a config.json"

    def test_no_folder(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "x") == f"{tmp_path / 'x'}: no such folder"

    def test_a_file(self, folder: Path) -> None:
        path = folder / "model.safetensors"
        assert refusal(path) == f"{path}: a file; give its folder, with config.json and tokenizer: {folder}"

    def test_an_adapter(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.safetensors").touch()
        says = "an adapter (adapter_config.json), not a model; serve its base model with --adapter NAME=FOLDER"
        assert refusal(tmp_path) == f"{tmp_path}: {says}"
        with pytest.raises(CheckpointError, match="an adapter"):
            Outline.read(str(tmp_path))

    def test_a_gguf_without_a_config(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").touch()
        (tmp_path / "other.pth").touch()
        with pytest.raises(CheckpointError, match=r"holds a\.gguf and no safetensors: serve that file"):
            Outline.read(str(tmp_path))

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        says = "no such file; for a published model --preset NAME stands for it"
        assert refusal(folder) == f"{folder / 'config.json'}: {says}"

    def test_a_config_without_a_model_type(self, folder: Path) -> None:
        (folder / "config.json").write_text('{"hidden_size": 64}')
        says = "has no model_type, which names the family; known are bert, "
        assert refusal(folder).startswith(f"{folder / 'config.json'}: {says}")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs(folder: Path, file: str) -> None:
    (folder / file).write_text(POINTER)
    assert refusal(folder) == f"{folder / file}: {LFS}"


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_a_pointer_in_place_of_other_weights(folder: Path, file: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / file).write_text(POINTER)
    assert refusal(folder) == f"{folder / file}: {LFS}"


@pytest.mark.parametrize(
    ("family", "file"), [("bert", "vocab.txt"), ("glm4", "tokenizer.json"), ("glm4", "tokenizer.model")]
)
def test_a_pointer_in_place_of_a_tokenizer(tmp_path: Path, family: str, file: str) -> None:
    (tmp_path / file).write_text(POINTER)
    assert tokenizer_refusal(tmp_path, family) == f"{tmp_path / file}: {LFS}"


CONFIGS = {
    "bert": {
        "model_type": "bert", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 9,
        "intermediate_size": 8, "max_position_embeddings": 8,
    },
    "glm4": {
        "model_type": "glm4", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 9,
        "intermediate_size": 8, "max_position_embeddings": 8, "num_key_value_heads": 1, "head_dim": 8,
    },
    "chatglm": {
        "model_type": "chatglm", "num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 9,
        "inner_hidden_size": 8, "max_sequence_length": 8, "position_encoding_2d": True,
    },
}  # fmt: skip


def tokenizer_refusal(folder: Path, family: str) -> str:
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    with pytest.raises(CheckpointError) as error:
        Description.read(folder)
    message = str(error.value)
    assert "\n" not in message
    return message


class TestTokenizers:
    @pytest.mark.parametrize("family", CONFIGS)
    def test_a_missing_one_is_missing(self, tmp_path: Path, family: str) -> None:
        (tmp_path / "tokenizer_config.json").write_text("{}")
        says = "; the folder has no tokenizer, --tokenizer FOLDER takes another one's"
        assert tokenizer_refusal(tmp_path, family).endswith(says)

    def test_one_of_another_kind(self, tmp_path: Path, tokenizer_folder: Path) -> None:
        shutil.copy(tokenizer_folder / "tokenizer.model", tmp_path)
        path = tmp_path / "tokenizer.model"
        says = f"{path}: is a sentencepiece model; this model's has in each line a piece in base64"
        assert tokenizer_refusal(tmp_path, "glm4").startswith(says)
        held = "of tokenizers the folder has tokenizer.model (a sentencepiece model)"
        assert tokenizer_refusal(tmp_path, "bert") == f"{tmp_path / 'tokenizer.json'}: no such file; {held}"
        assert tokenizer_refusal(tmp_path, "chatglm") == f"{tmp_path / 'ice_text.model'}: no such file; {held}"

    def test_a_list_of_pieces_where_sentencepiece_is_wanted(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        path.write_bytes(b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256)))
        kind = "a vocabulary of GLM-4's kind (in each line a piece in base64 and its rank)"
        assert refusal(folder) == f"{path}: not a sentencepiece model (it is {kind})"

    @pytest.mark.parametrize(
        ("family", "found", "wanted"), [("bert", "BPE", "WordPiece"), ("glm4", "WordPiece", "BPE")]
    )
    def test_a_tokenizer_json_of_another_kind(self, tmp_path: Path, family: str, found: str, wanted: str) -> None:
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps({"model": {"type": found, "vocab": {"a": 0}}, "added_tokens": []}))
        says = f"{path}: a tokenizer of the kind {found!r}; this model has {wanted}"
        assert tokenizer_refusal(tmp_path, family) == says


class TestHeads:
    @pytest.mark.parametrize(
        ("added", "says"),
        [
            ({}, "has no head at all"),
            ({"classifier.weight": 2, "classifier.bias": 2}, "the head of a classifier (classifier.bias, classifier.w"),
            ({"qa_outputs.weight": 2, "qa_outputs.bias": 2}, "the head of a classifier (qa_outputs.bias, qa_outputs.w"),
        ],
        ids=["BertModel", "BertForSequenceClassification", "BertForQuestionAnswering"],
    )
    def test_a_model_without_a_language_model_s(self, tmp_path: Path, added: dict[str, int], says: str) -> None:
        stored = load_file(GOLDEN / "bert.safetensors")
        stored = {k.removeprefix("weights."): t for k, t in stored.items() if k.startswith("weights.")}
        whole = self.weights(tmp_path / "whole", stored)
        kept = {name: tensor for name, tensor in stored.items() if not name.startswith("cls.")}
        weights = self.weights(tmp_path / "other", kept | {name: torch.zeros(rows, 8) for name, rows in added.items()})
        with pytest.raises(CheckpointError) as error:
            weights.check({name: (shape, None) for name, (shape, _) in whole.entries.items()})
        assert says in str(error.value)
        assert str(error.value).endswith("need a language model's; use the model that it was made from")

    def weights(self, folder: Path, content: dict[str, torch.Tensor]) -> Weights:
        folder.mkdir()
        save_file(content, folder / "model.safetensors")
        return Weights(folder, [BERT_NAMING])
