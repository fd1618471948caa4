"""The schemes: one file each, found by `quant.registry`. A scheme's name is its file's, with `-` for `_`."""
