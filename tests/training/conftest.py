"""What several tests of training need and is slow to make."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

ROLES = ("eos", "cls", "mask", "smask", "gmask", "sop", "eop")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of some hundred pieces, made as `training.vocabulary` makes the demo's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [
        "the ship went down the river and the men saw the town.",
        "a good friend came home late that night, and nobody knew why.",
        "春风又绿江南岸，明月何时照我还。",
    ] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=360,
        model_type="unigram",
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    special = {role: size + number for number, role in enumerate(ROLES)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"special_tokens": special}))
    return folder
