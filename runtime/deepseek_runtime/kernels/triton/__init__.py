"""The operations that cost time as Triton kernels, one source for NVIDIA and AMD; run on a CPU by Triton's interpreter.

No kernel is autotuned: tile shapes follow from sizes and the device alone, so that a result never depends on timing.
"""
