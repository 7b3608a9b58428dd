"""Triton kernels of fastsample, each beside its torch reference. None is here yet; the torch backend runs alone."""
