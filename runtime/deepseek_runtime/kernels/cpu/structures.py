"""What the C++ functions take by pointer, field by field as `src/matrix.h`, `experts.cpp`, `router.cpp` and
`absorbed.cpp` declare it, and the weights of a model described once each."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from deepseek_runtime.kernels import interface
from deepseek_runtime.kernels.fp8 import Fp8Weight, Weight
from deepseek_runtime.model.config import RouterConfig
from deepseek_runtime.model.step import Absorbed

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Matrix(ctypes.Structure):
    """A matrix or a stack of them."""

    _fields_ = [
        ("values", POINTER),
        ("scale", POINTER),
        *((name, LONG) for name in ("rows", "columns", "stride", "stack_stride", "scale_stride", "scale_stack_stride")),
        *((name, LONG) for name in ("block_rows", "block_columns", "row_offset", "column_offset")),
        ("type", INT),
    ]

    @classmethod
    def of(cls, weight: Weight) -> Matrix:
        """Describe a contiguous weight."""
        values = weight.values if isinstance(weight, Fp8Weight) else weight
        if not values.is_contiguous():
            raise ValueError(f"weights {tuple(values.shape)} have strides {values.stride()}: make them contiguous")
        rows, columns = values.shape[-2:]
        plain = (values.data_ptr(), 0, rows, columns, columns, rows * columns)
        if not isinstance(weight, Fp8Weight):
            return cls(*plain, *6 * (0,), TYPES[values.dtype])
        scale = weight.scale
        row, stack = scale.stride(-2), scale.stride(0) if scale.dim() == 3 else 0
        return cls(
            *plain[:1], scale.data_ptr(), *plain[2:], row, stack, *weight.block, *weight.offset, TYPES[values.dtype]
        )


class SwiGLU(ctypes.Structure):
    _fields_ = [("gate", Matrix), ("up", Matrix), ("down", Matrix)]

    @classmethod
    def of(cls, weights: interface.SwiGLU) -> SwiGLU:
        return cls(*map(Matrix.of, (weights.gate, weights.up, weights.down)))


class Routing(ctypes.Structure):
    _fields_ = [
        *((name, LONG) for name in ("experts", "chosen", "groups", "chosen_groups", "group_best")),
        ("softmax", INT),
        ("normalise", INT),
        ("scale", FLOAT),
    ]

    @classmethod
    def of(cls, config: RouterConfig) -> Routing:
        best = 2 if config.group_score == "top2_sum" else 1
        counts = (config.experts, config.chosen, config.groups, config.chosen_groups, best)
        return cls(*counts, config.scoring == "softmax", config.normalise, config.scale)


class Queries(ctypes.Structure):
    _fields_ = [
        ("nope", POINTER),
        ("rope", POINTER),
        *((name, LONG) for name in ("nope_token", "nope_head", "rope_token", "rope_head")),
        *((name, LONG) for name in ("heads", "nope_width", "rope_width")),
    ]

    @classmethod
    def of(cls, nope_THN: Tensor, rope_THR: Tensor) -> Queries:
        heads, width = nope_THN.shape[1:]
        nope, rope = nope_THN.stride(), rope_THR.stride()
        strides = (nope[0], nope[1], rope[0], rope[1])
        return cls(nope_THN.data_ptr(), rope_THR.data_ptr(), *strides, heads, width, rope_THR.shape[2])


class Paging(ctypes.Structure):
    _fields_ = [
        *((name, POINTER) for name in ("tokens", "lengths", "blocks")),
        *((name, LONG) for name in ("sequences", "queries", "blocks_stride", "block_size", "context")),
    ]
    kept: list[Tensor]
    """What the pointers point to."""

    @classmethod
    def of(cls, part: Absorbed) -> Paging:
        tensors = [tensor.contiguous() for tensor in (part.tokens_BQ, part.lengths_BQ, part.blocks_BP)]
        pointers = (tensor.data_ptr() for tensor in tensors)
        paging = cls(*pointers, *part.tokens_BQ.shape, part.blocks_BP.shape[1], part.block_size, part.context)
        paging.kept = tensors
        return paging


class Expansion(ctypes.Structure):
    _fields_ = [("up_key", POINTER), ("up_value", POINTER), ("latent", LONG), ("value", LONG), ("scale", FLOAT)]

    @classmethod
    def of(cls, expansion: interface.Expansion) -> Expansion:
        keys, values = expansion.w_uk_HNC, expansion.w_uv_HVC
        return cls(keys.data_ptr(), values.data_ptr(), keys.shape[2], values.shape[1], expansion.scale)


Source = TypeVar("Source")


class Descriptions(Generic[Source]):
    """Pointers to descriptions, each made when its tensor is first seen, and forgotten with the tensor."""

    def __init__(self, describe: Callable[[Source], ctypes.Structure]) -> None:
        self._describe = describe
        self._known: dict[int, tuple[int, ctypes.Structure, weakref.ref[Tensor]]] = {}

    def pointer(self, key: Tensor, source: Source) -> int:
        """The address of the description of `source`, of which `key` is a part that nothing else shares."""
        known = self._known.get(id(key))
        return known[0] if known else self._add(key, source)

    def _add(self, key: Tensor, source: Source) -> int:
        number, structure = id(key), self._describe(source)
        address = ctypes.addressof(structure)
        self._known[number] = (address, structure, weakref.ref(key, lambda _: self._known.pop(number, None)))
        return address
