"""Makes `tokenizers.json.gz` and the vocabularies in `vocab/`: what the originals' tokenizers make of 2,000 lines.

SwissArmyTransformer 0.4.12 (Apache-2.0, THUDM) has GLM's vocabularies and its tokenizers, icetk 0.0.7 (MIT, THUDM)
what they need of it, tiktoken (MIT, OpenAI) is what GLM-4's own tokenizer runs on. `ice_text.model` and GLM-4's
pieces come with the checkpoints only, so a small sentencepiece model is trained with icetk's scheme, and GPT-2's
pieces stand for GLM-4's. Ids are of plain text: what the originals do with special tokens spelled in it is left
out, but for masks in `masked`. Knows nothing of this repository's code. To rerun, in the repository root, with a
folder of English (en_*.txt) and Chinese (zh_*.txt) text:

    python3.11 -m venv /tmp/sat
    /tmp/sat/bin/pip install sentencepiece protobuf regex nltk tiktoken requests tqdm filelock
    /tmp/sat/bin/pip install --no-deps swissarmytransformer==0.4.12 icetk==0.0.7
    /tmp/sat/bin/python tests/golden/make_tokenizers.py CORPORA
"""

import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import sentencepiece
import tiktoken
from sentencepiece import sentencepiece_model_pb2

GOLDEN = Path(__file__).with_name("tokenizers.json.gz")
VOCAB = Path(__file__).with_name("vocab")
LONGEST_LINE = 120
ENGLISH, CHINESE, CODE, MADE_UP = 650, 650, 350, 350
HARD = [
    " ",
    "  ",
    "\n",
    "\t",
    " a",
    "a ",
    "  two  spaces  ",
    "tab\tand\nnewline\r\nand both\n\n\n",
    "    indented:\n        more\n",
    " " * 79 + "x",
    " " * 80,
    " " * 81,
    "x" + " " * 161 + "y",
    "\u3000全角空格\u3000",
    "a\u00a0b\u2009c\u200bd\ufeffe",
    "Hello, world!",
    "HELLO World's don't we'll I'M they'RE",
    "'s 't 're 've 'm 'll 'd",
    "naïve café Ångström ÀÉÎÕÜ",
    "ΟΔΟΣ Σ ΣΑΣ İstanbul ǅ ﬁ ß ẞ",
    "1234567890 3.14 1,000,000 ½ ² Ⅷ ① ٣",
    "x=1;y=[2,3];z={'a':4}",
    "a_b__c-d--e...f…g",
    "http://example.org/a?b=c&d=%20#e",
    "user@example.org",
    "$5 €6 £7 ¥8 ¢9 ₿",
    "!!!??? \u00bf\u00a1 «q» “r” ‘s’",
    "a'b''c `d` ~e~ ^f^",
    "我们看见红色的船。",
    "，。！？；：（）《》",
    "Ａｂｃ１２３％＆",
    "中文English混排123，test。",
    "鿿 㐀 𠀀 𪚥 豈 あいう カタカナ 한국어",
    "凯旋门位于法国巴黎",
    "😀 😃😄 👩🏽‍🚀 🇫🇷 ❤️ 🫠",
    "\u0301a\u0301e\u0308 \u200d\u200c",
    "\ufffd \ufffe \ue000",
    "\x00\x01\x1f\x7f\x85",
    "\u2028\u2029\u0085 z",
    "مرحبا שלום Привет नमस्ते ไทย",
    "<unk> <s> </s> <pad> <mask> <0x41>",
    "<|endoftext|> <|startofpiece|> <|endofpiece|>",
    "[ MASK ] [UNK] [SEP] [CLS] [PAD]",
    "a<n>b <|tab|>c<|blank_4|>d",
    "\u2581under\u2581\u2581score",
    "⁇ \u2047",
    "##able un##able",
    "a" * 101,
    "b" * 100,
    "na" * 40,
    "----------------",
    "aaaaaaaaaaaaaaaaaaaaaaaaa",
    "def f(x):\n    return x  # comment",
    "\tif (a && b) {\n\t\treturn;\n\t}",
    'for i in range(10): print(i, end="\\n")',
    "/* a */ // b\n#include <c.h>",
]
MASKED = [
    "The cat [MASK] on the mat.",
    "The cat[MASK]on the mat",
    "The cat  [MASK]  on",
    "[MASK]",
    " [MASK] ",
    "[MASK][MASK]",
    "[MASK] [MASK] a [MASK]",
    "line one\n[MASK]\nline two",
    "tab\t[MASK]\tx",
    "凯旋门位于[MASK]第八区。",
    "凯旋门位于 [MASK] 第八区。",
    "un[MASK]able",
    "He said, “[MASK]” and\n\n [MASK].",
    "a\u3000[MASK]b",
    "end [MASK]\n",
]
ALPHABET = " \n\t  '.,-_()[]{}<>:;!?/\\|@#$%^&*+=~`\"aeinorst"
ALPHABET += "THEXz0159éßñΣЖ中文国的，。！？１ａ①😀👍🏽❤️\u200d\u3000\u00a0\u2009\u0301"


def package(name: str, **modules: ModuleType) -> Path:
    """Makes a package importable without running its `__init__`, which wants torch and more; gives its folder."""
    spec = importlib.util.find_spec(name)
    assert spec
    assert spec.submodule_search_locations
    module = ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = module
    for leaf, stand_in in modules.items():
        sys.modules[f"{name}.{leaf}"] = stand_in
    return Path(module.__path__[0])


def lines_of(corpora: Path, code: Path) -> Iterator[str]:
    """English, Chinese, code and made-up lines, the same ones for the same files."""
    draw = random.Random(20210318)
    for pattern, count in (("en_*.txt", ENGLISH), ("zh_*.txt", CHINESE)):
        texts = [path.read_text(encoding="utf-8").split("\n") for path in sorted(corpora.glob(pattern))]
        found = 0
        while found < count:
            line = draw.choice(draw.choice(texts))
            start = draw.randrange(max(len(line) - LONGEST_LINE, 0) + 1)
            if line.strip():
                found += 1
                yield line[start : start + LONGEST_LINE]
    source = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    for _ in range(CODE):
        text = draw.choice(source)
        start = draw.randrange(max(len(text) - LONGEST_LINE, 1))
        yield text[start : start + LONGEST_LINE]
    for _ in range(MADE_UP):
        yield "".join(draw.choices(ALPHABET, k=draw.randint(1, 40)))


def ice_models(lines: list[str]) -> tuple[bytes, bytes]:
    """A small model of icetk's scheme, as its file was at first and as it is with the pieces of ChatGLM-6B."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.replace("\n", " ") for line in lines),
        model_writer=out,
        vocab_size=1800,
        character_coverage=0.985,
        normalization_rule_name="nmt_nfkc",
        pad_id=3,
        user_defined_symbols=["<n>"],
        num_threads=1,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    kinds = {
        "[MASK]": 3,
        "[gMASK]": 3,
        "[sMASK]": 3,
        "<unused_0>": 3,
        "<sop>": 3,
        "<eop>": 3,
        "<ENC>": 3,
        "<dBLOCK>": 3,
    }
    kinds |= {"<|tab|>": 4} | {f"<|blank_{n}|>": 4 for n in range(2, 81)} | {f"<0x{b:02X}>": 6 for b in range(256)}
    for piece, kind in kinds.items():
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    proto.trainer_spec.byte_fallback = True
    return out.getvalue(), proto.SerializeToString()


def hashed(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:8]


def compress(data: bytes) -> bytes:
    return gzip.compress(data, 9, mtime=0)


def main() -> None:
    # The tokenizers import both and call neither.
    sys.modules |= {"torch": ModuleType("torch"), "transformers": ModuleType("transformers")}
    sys.modules["transformers"].AutoTokenizer = None  # type: ignore[attr-defined]
    package("icetk", sentencepiece_model_pb2=sentencepiece_model_pb2)
    assets = package("sat") / "tokenization" / "embed_assets"
    package("sat.tokenization")
    glm = importlib.import_module("sat.tokenization.glm.tokenization")
    ice = importlib.import_module("sat.tokenization.icetk_glm_130B.ice_tokenizer")
    english, chinese = assets / "english_tokenizer", assets / "chinese_sentencepiece"
    lines = list(lines_of(Path(sys.argv[1]), assets.parent / "glm"))

    VOCAB.mkdir(exist_ok=True)
    for path in (
        english / "gpt2-merges.txt", english / "roberta-vocab.json", english / "bert-base-uncased-vocab.txt",
        chinese / "cog-pretrain.model",
    ):  # fmt: skip
        (VOCAB / f"{path.name}.gz").write_bytes(compress(path.read_bytes()))
    before, after = ice_models(lines)
    (VOCAB / "ice_text.model.gz").write_bytes(compress(before))
    (VOCAB / "ice_text_chatglm.model.gz").write_bytes(compress(after))

    blocks = {"add_block_symbols": True, "add_task_mask": True}
    gpt2 = glm.GPT2BPETokenizer("gpt2", **blocks)
    roberta = glm.GPT2BPETokenizer("roberta", add_block_symbols=True)
    bert = glm.BertWordPieceTokenizer("bert-base-uncased", add_block_symbols=True)
    bert.text_tokenizer.basic_tokenizer.never_split = ()
    large, ten = glm.ChineseSPTokenizer("glm-large", **blocks), glm.ChineseSPTokenizer("glm-10b", **blocks)
    model = Path(tempfile.mkdtemp()) / "ice_text.model"
    model.write_bytes(before)
    glm130b = ice.GLM130BTokenizer(path="")
    glm130b._text_tokenizer = ice.TextTokenizer(str(model))
    glm130b._configure_tokenizer(glm130b._text_tokenizer, glm130b.special_tokens, 80, True)
    icetk = ice.TextTokenizer(str(model))
    pieces = gpt2.text_tokenizer
    ranks = {bytes(pieces.byte_decoder[c] for c in piece): i for piece, i in pieces.encoder.items() if i < 50256}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+"
    )
    glm4 = tiktoken.Encoding("glm-4", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    Encode, Decode = Callable[[str], list[int]], Callable[[list[int]], str]
    kinds: dict[str, tuple[Encode, Decode, Any]] = {
        "gpt2": (gpt2._encode, gpt2._decode, gpt2),
        "roberta": (roberta._encode, roberta._decode, roberta),
        "bert": (bert._encode, bert.DecodeIds, bert),
        "large-chinese": (large._encode, large._decode, large),
        "10b-chinese": (ten._encode, ten._decode, ten),
        "glm-130b": (glm130b.encode, glm130b.decode, None),
        "glm-130b-prefix": (lambda text: glm130b.encode(text, add_dummy_prefix=False), glm130b.decode, None),
        "icetk": (
            lambda text: [20000 + i for i in icetk.encode(text)],
            lambda ids: icetk.decode([i - 20000 for i in ids]).replace("<n>", "\n"),
            None,
        ),
        "glm-4": (glm4.encode_ordinary, glm4.decode, None),
    }
    golden: dict[str, Any] = {"lines": lines, "hard": HARD, "masked": MASKED, "kinds": {}}
    for name, (encode, decode, whole) in kinds.items():
        hard = [encode(text) for text in HARD]
        golden["kinds"][name] = {
            "hashes": " ".join(hashed(encode(line)) for line in lines),
            "hard": hard,
            "decoded": [decode(ids) for ids in hard],
        }
        if whole is not None:
            golden["kinds"][name]["masked"] = [whole.EncodeAsIds(text).tokenization for text in MASKED]
            golden["kinds"][name]["special"] = {token.name: token.Id for token in whole.command_tokens}
    GOLDEN.write_bytes(compress(json.dumps(golden, ensure_ascii=False).encode()))
    for path in (GOLDEN, *sorted(VOCAB.iterdir())):
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
