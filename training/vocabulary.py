"""Trains the demo's sentencepiece vocabulary: unigram, byte fallback, no normalization.

python -m training.vocabulary --corpora FOLDER --out tokenizer.model
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from training.corpus import MIX, training_documents


def lines(folder: Path) -> Iterator[str]:
    """Every training line, once."""
    for name in MIX:
        for document in training_documents(folder, name):
            yield from document.split("\n")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=12000)
    args = parser.parse_args()
    with args.out.open("wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(args.corpora),
            model_writer=out,
            vocab_size=args.size,
            model_type="unigram",
            character_coverage=0.9995,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            max_sentence_length=20000,
            input_sentence_size=200_000,
            shuffle_input_sentence=True,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=2,
        )


if __name__ == "__main__":
    main()
