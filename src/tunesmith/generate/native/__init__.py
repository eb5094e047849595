"""Kernels in C for decoding in bf16 on processors that multiply such numbers (AVX512-BF16)."""
