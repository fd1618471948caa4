"""The tokenizers of the published GLM families, one kind per file. `model.tokenizer` chooses among them."""
