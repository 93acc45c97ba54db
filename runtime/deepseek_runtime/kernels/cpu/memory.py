"""Huge pages: streaming weights through 4 KiB pages costs a tenth of the bandwidth, of FP8 blocks a third."""

from __future__ import annotations

import ctypes
from functools import cache

from torch import Tensor

HUGE_PAGE = 2**21

# <asm-generic/mman-common.h>; the second needs Linux 6.1 and is refused by older ones, which is no harm.
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask the kernel for huge pages under a tensor in CPU memory: for what it will touch, and for what it has.

    Best called before the tensor is filled. Nothing happens where the kernel cannot, or the tensor is small.
    """
    first = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    size = (tensor.data_ptr() + tensor.nbytes) // HUGE_PAGE * HUGE_PAGE - first
    if tensor.device.type != "cpu" or size <= 0:
        return
    madvise = _madvise()
    if madvise is not None and madvise(first, size, MADV_HUGEPAGE) == 0:
        madvise(first, size, MADV_COLLAPSE)


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
