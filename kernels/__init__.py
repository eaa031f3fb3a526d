"""Triton kernels of fastguide, one file per op."""
