"""Numbers and bytes: quantization schemes and their matrix products. Knows no model and no rank."""
