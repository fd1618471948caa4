"""The operators, one file each: an implementation in torch for every device, and kernels for some devices."""
