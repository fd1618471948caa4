"""The operators, one file each: a plain computation for every device and kernels for some, behind one call."""
