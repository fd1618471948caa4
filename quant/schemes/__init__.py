"""The schemes, one file each; `quant.registry` finds them. A scheme's name is its file's name, with `-` for `_`."""
