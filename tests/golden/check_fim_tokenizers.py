"""Compares our tokenizers with those of the published Qwen2, DeepSeek-Coder, StarCoder and Llama, on their own pieces.

llama.cpp (MIT) keeps the vocabularies of published models, and for some hundred lines the ids that the original
tokenizers gave, by transformers. They are in the source package of `llama-cpp-python`, too large to be committed, so
this is a script and not a test. It puts together the tokenizer files of each model around these pieces: the steps
before the pieces are those of the published `tokenizer.json`.

    python3 -m venv /tmp/fim && /tmp/fim/bin/pip install gguf==0.19.0 tokenizers sentencepiece protobuf
    curl or pip download: llama_cpp_python-0.3.16.tar.gz, unpacked into /tmp/fim
    /tmp/fim/bin/python tests/golden/check_fim_tokenizers.py make /tmp/fim
    .venv/bin/python -m tests.golden.check_fim_tokenizers compare /tmp/fim

Measured: all lines of all four kinds have the original's ids, and come back as they were.
"""

import argparse
import unicodedata
from pathlib import Path
from typing import Any

BETWEEN = "\n__ggml_vocab_test__\n"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
QWEN2_ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
FAMILIES = {"qwen2": "qwen2", "deepseek-coder": "llama", "starcoder": "starcoder2", "llama-spm": "llama"}


def vocabulary(path: Path) -> dict[str, Any]:
    import gguf

    fields = gguf.GGUFReader(path).fields
    names = ("tokens", "token_type", "merges", "scores")
    return {name: fields[f"tokenizer.ggml.{name}"].contents() for name in names if f"tokenizer.ggml.{name}" in fields}


def byte_level(name: str, vocab: dict[str, Any]) -> str:
    """A `tokenizer.json` as it is published, with these pieces."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    plain = {t: i for i, t in enumerate(vocab["tokens"]) if vocab["token_type"][i] == 1 or name == "starcoder"}
    merges: Any = [tuple(merge.split(" ")) for merge in vocab["merges"]]
    made = Tokenizer(models.BPE(plain, merges))
    pieces: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "starcoder")
    steps: list[Any] = {
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated")],
        "deepseek-coder": [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEEPSEEK),
            pre_tokenizers.Digits(individual_digits=True),
        ],
        "starcoder": [pre_tokenizers.Digits(individual_digits=True)],
    }[name]
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, pieces])
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
        made.add_tokens([AddedToken(token, special=token.startswith("<|"), normalized=False) for token in QWEN2_ADDED])
    else:
        kinds = zip(vocab["tokens"], vocab["token_type"], strict=True)
        added = [(token, kind) for token, kind in kinds if kind != 1 and not token.startswith("[PAD")]
        made.add_tokens([AddedToken(token, special=kind == 3, normalized=kind != 3) for token, kind in added])
    if name == "deepseek-coder":
        bos = "<｜begin▁of▁sentence｜>"
        ids = [(bos, vocab["tokens"].index(bos))]
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    return str(made.to_str())


def sentence_pieces(vocab: dict[str, Any]) -> bytes:
    """A `tokenizer.model` with these pieces."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in zip(vocab["tokens"], vocab["scores"], vocab["token_type"], strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = 2  # BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    return bytes(proto.SerializeToString())


def lines(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    (path,) = folder.rglob(f"ggml-vocab-{name}.gguf.inp")
    texts = path.read_text(encoding="utf-8").split(BETWEEN)
    ids = [[int(i) for i in line.split()] for line in path.with_suffix(".out").read_text().split("\n")]
    return list(zip(texts, ids, strict=False))


def make(folder: Path) -> None:
    for name in FAMILIES:
        (path,) = folder.rglob(f"ggml-vocab-{name}.gguf")
        vocab, made = vocabulary(path), folder / "made" / name
        made.mkdir(parents=True, exist_ok=True)
        if name == "llama-spm":
            (made / "tokenizer.model").write_bytes(sentence_pieces(vocab))
        else:
            (made / "tokenizer.json").write_text(byte_level(name, vocab), encoding="utf-8")


def compare(folder: Path) -> None:
    from model.families import FAMILIES as KNOWN

    readers = {family.name: family.tokenizer for family in KNOWN}
    failed = 0
    for name, family in FAMILIES.items():
        tokenizer = readers[family](folder / "made" / name)
        known = lines(folder, name)
        wrong = [(text, ids) for text, ids in known if tokenizer.encode(tokenizer.opened(text)) != ids]
        lost = [text for text, ids in known if tokenizer.decode(ids) != tokenizer.opened(_normal(name, text))]
        roles = [role for role in tokenizer.special if role.startswith("fim_")]
        print(f"{name}: {len(known)} lines, {len(wrong)} with other ids, {len(lost)} come back otherwise; {roles}")
        for text, ids in wrong[:3]:
            print(repr(text), ids, tokenizer.encode(tokenizer.opened(text)))
        failed += len(wrong) + len(lost)
    assert not failed


def _normal(name: str, text: str) -> str:
    return unicodedata.normalize("NFC", text) if name == "qwen2" else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["make", "compare"])
    parser.add_argument("folder", type=Path, help="folder that the source package was unpacked into")
    args = parser.parse_args()
    (make if args.step == "make" else compare)(args.folder)


if __name__ == "__main__":
    main()
