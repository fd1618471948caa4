"""Networks and their files: GLM, its attention, positions, tokenizer and checkpoints. No serving concept."""
