"""Quantization: formats, HQQ, packing into stores, low-bit kernels."""
