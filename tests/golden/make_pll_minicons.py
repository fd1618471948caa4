"""Makes `pll_minicons.safetensors`: pseudo-log-likelihoods of a masked language model, by minicons.

minicons 0.3.39 (MIT, Kanishka Misra) over transformers 4.57.3's BertForMaskedLM: a 2-layer model with random weights
in float32 on a CPU. The file holds `weights.NAME` as BertForMaskedLM.state_dict() names them. For each text of the
metadata it holds `original.N` (Salazar et al. 2020) and `word_l2r.N` (Kauf and Ivanova 2023, minicons' metric
"within_word_l2r"): the log-probability of each token. `token_ids.N` are the tokens without [CLS] and [SEP].

Metadata, each as JSON: `config` (config.json), `vocab` (the lines of vocab.txt), `texts`.

Knows nothing of this repository's code. minicons 0.3.39 does not work with transformers 5. To rerun, in the repository
root:

    python3.11 -m venv /tmp/minicons
    /tmp/minicons/bin/pip install minicons==0.3.39 transformers==4.57.3
    /tmp/minicons/bin/python tests/golden/make_pll_minicons.py
"""

import tempfile
from pathlib import Path

import torch
from making import named, randomise, save
from minicons.scorer import MaskedLMScorer
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
WORDS = [
    "the", "cat", "sat", "on", "mat", "carl", "took", "a", "souvenir", ".", ",", "'", "!", "-", "dog", "un", "in",
    "ing", "don", "t", "s", "we", "i", "am", "not", "very", "long", "be", "##s", "##ed", "##ing", "##able", "##aff",
    "##ven", "##ir", "##ou", "##er", "##ly", "##est",
]  # fmt: skip
VOCAB = [*SPECIAL, *WORDS, *(c for c in LETTERS if c not in WORDS), *(f"##{c}" for c in LETTERS)]
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": len(VOCAB),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
TEXTS = (
    "the cat sat on the mat.",
    "Carl took a souvenir, unaffable souvenirs!",
    "I'm not-very longest: don't be dogged",  # ":" is not in the vocabulary
    "a",
    "unaffable",
    "the\ncat  sat\t, on 中 the Mat !",
)
METRICS = {"original": "original", "word_l2r": "within_word_l2r"}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(VOCAB))
        tokenizer = BertTokenizerFast(str(Path(folder) / "vocab.txt"))
    config = BertConfig(**CONFIG)
    config._attn_implementation = "eager"
    model = BertForMaskedLM(config).float().eval()
    randomise(model.named_parameters(), seed=20230518)
    model.tie_weights()
    scorer = MaskedLMScorer(model, "cpu", tokenizer)
    tensors = named("weights", {k: v for k, v in model.state_dict().items() if "position_ids" not in k})
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tensors[f"token_ids.{number}"] = torch.tensor(ids)
        for name, metric in METRICS.items():
            (scores,) = scorer.token_score([text], PLL_metric=metric)
            assert len(scores) == len(ids)
            tensors[f"{name}.{number}"] = torch.tensor([score for _, score in scores])
        print(text, *(float(tensors[f"{name}.{number}"].sum()) for name in METRICS))
    save(__file__, "pll_minicons.safetensors", tensors, config=CONFIG, vocab=VOCAB, texts=TEXTS)


if __name__ == "__main__":
    main()
