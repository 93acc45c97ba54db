"""The operations in C++ for CPUs with AVX-512 and bf16 dot products, called through ctypes."""
