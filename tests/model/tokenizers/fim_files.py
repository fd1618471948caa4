"""Stand-ins for the tokenizer files of models that fill in the middle: their schemes, over GPT-2's pieces or small
ones."""

import io
from collections.abc import Sequence
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

QWEN2_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
STARCODER2_SPECIAL = (
    "<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<repo_name>", "<file_sep>", "<NAME>",
)  # fmt: skip
DEEPSEEK_LETTERS = "õ÷ÁýÀÿøúþüùöû"
DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"
DEEPSEEK_SPECIAL = (
    DEEPSEEK_BOS, "<｜end▁of▁sentence｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<pad>", "<|EOT|>",
)  # fmt: skip
CODELLAMA_SPECIAL = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
IGLM = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"ACDEFGHIKLMNPQRSTVWY", "[CAMEL]", "[HUMAN]", "[MOUSE]", "[RABBIT]",
    "[RAT]", "[RHESUS]", "[HEAVY]", "[LIGHT]",
)  # fmt: skip
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")

Merges = Sequence[tuple[str, str]]


def _model(pieces: Sequence[str], merges: Merges, use_regex: bool, *steps: Any) -> Tokenizer:
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(merges)))
    last: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, last])
    made.decoder = decoders.ByteLevel()
    return made


def qwen2(pieces: Sequence[str], merges: Merges) -> str:
    """`tokenizer.json` of Qwen2.5-Coder's scheme, in which the sentinels are not called special."""
    made = _model(pieces, merges, False, pre_tokenizers.Split(Regex(_QWEN2), "isolated"))
    made.normalizer = normalizers.NFC()
    made.add_tokens([AddedToken(t, special=t.startswith(("<|e", "<|im")), normalized=False) for t in QWEN2_SPECIAL])
    return str(made.to_str())


def starcoder2(pieces: Sequence[str], merges: Merges) -> str:
    """`tokenizer.json` of StarCoder2's scheme, in which the special tokens have the first ids."""
    made = _model([*STARCODER2_SPECIAL, *pieces], merges, True, pre_tokenizers.Digits(individual_digits=True))
    made.add_special_tokens(list(STARCODER2_SPECIAL))
    return str(made.to_str())


def deepseek(pieces: Sequence[str], merges: Merges) -> str:
    """`tokenizer.json` of DeepSeek-Coder's scheme, whose pieces lack bytes that no UTF-8 has: as letters they are
    added."""
    made = _model(
        [piece for piece in pieces if piece not in DEEPSEEK_LETTERS],
        merges,
        False,
        *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _DEEPSEEK),
        pre_tokenizers.Digits(individual_digits=True),
    )
    made.add_tokens([AddedToken(letter, special=False, normalized=True) for letter in DEEPSEEK_LETTERS])
    made.add_tokens([AddedToken(t, special="sentence" in t, normalized=False) for t in DEEPSEEK_SPECIAL])
    bos: Any = [(DEEPSEEK_BOS, made.token_to_id(DEEPSEEK_BOS))]
    made.post_processor = processors.TemplateProcessing(single=f"{DEEPSEEK_BOS} $A", special_tokens=bos)
    return str(made.to_str())


def codellama(lines: Sequence[str]) -> bytes:
    """`tokenizer.model` of Code Llama's scheme, with few pieces."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.replace("\n", " ") for line in lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=1800,
        character_coverage=0.98,
        normalization_rule_name="identity",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        control_symbols=list(CODELLAMA_SPECIAL),
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()
