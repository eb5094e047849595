"""Kernels in C for training and decoding in bf16 on processors that multiply such numbers (AVX512-BF16)."""
