"""GGUF files, in which llama.cpp keeps a model: header, blocks of numbers, names and tokenizer."""
