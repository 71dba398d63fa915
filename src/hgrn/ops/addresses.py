"""Addresses of tensors: the one place that takes them, and that knows of which there are any.

A kernel reads and writes at an address without asking anybody. So what does not lie in the CPU's
memory as the kernel expects it must be stopped here: a tensor subclass (quantized weights, a fake
or distributed tensor), a tensor of another device or dtype, one whose minus sign is only noted, one
without memory (meta, lazy zeros, freed storage).
"""

from typing import NoReturn

import torch
from torch import Tensor, nn

_PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


class HoldsAddresses:
    """What holds addresses is neither copied nor pickled: the memory of a copy lies elsewhere."""

    def __reduce_ex__(self, protocol: int) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds addresses of memory and can be neither copied nor "
            "pickled; make it anew from its tensors"
        )


class Places:
    """Where tensors lie now. The memory is kept, so that no other tensor can come to lie there."""

    def __init__(self, tensors: list[Tensor]):
        self._kept = [x.detach() for x in tensors]
        self._where = [x.data_ptr for x in tensors]
        self._before = [where() for where in self._where]

    def have_changed(self) -> bool:
        """Whether one of the tensors lies elsewhere."""
        return [where() for where in self._where] != self._before


def is_plain(x: Tensor) -> bool:
    """Whether x is PyTorch's own kind of tensor, its values in memory as they are, on any device."""
    return type(x) in _PLAIN_TYPES and not (x.is_neg() or x.is_meta or x._is_zerotensor())


def address(x: Tensor, dtype: torch.dtype) -> int:
    """Where the elements of a contiguous CPU tensor begin.

    Raises:
        ValueError: x is of another dtype or device, or has no plain memory (see above).
    """
    if (
        type(x) not in _PLAIN_TYPES
        or x.dtype is not dtype
        or not x.is_cpu
        or x.is_neg()
        or not x.is_contiguous()
    ):
        _refuse(x, dtype)
    return _begin(x, dtype)


def optional(x: Tensor | None, dtype: torch.dtype) -> int:
    """`address`, or 0 where there is no tensor."""
    return 0 if x is None else address(x, dtype)


def address_of_rows(x: Tensor, dtype: torch.dtype) -> int:
    """As `address`, for a tensor of which only the last axis must be contiguous."""
    if (
        type(x) not in _PLAIN_TYPES
        or x.dtype is not dtype
        or not x.is_cpu
        or x.is_neg()
        or (x.stride(-1) != 1 and x.shape[-1] > 1)
    ):
        _refuse(x, dtype)
    return _begin(x, dtype)


def _begin(x: Tensor, dtype: torch.dtype) -> int:
    try:
        begin = x.data_ptr()
    except RuntimeError:  # it has no storage: another layout, or a tensor of a transform
        _refuse(x, dtype)
    if begin == 0 and x.numel():  # zeros without memory, or a storage that was freed
        _refuse(x, dtype)
    return begin


def _refuse(x: Tensor, dtype: torch.dtype) -> NoReturn:
    raise ValueError(
        f"a CPU kernel needs {dtype} in plain contiguous memory of the CPU, got {describe(x)}"
    )


def describe(x: Tensor) -> str:
    """What matters of x to a kernel, in words for an error."""
    if type(x) not in _PLAIN_TYPES:
        return f"a {type(x).__name__}"
    if x.layout != torch.strided or x.is_nested:
        return f"a {'nested' if x.is_nested else x.layout} tensor"
    words = f"{x.dtype} on {x.device} of shape {tuple(x.shape)}"
    if x.is_neg():
        return f"{words}, negated lazily (use resolve_neg)"
    if not x.is_contiguous():
        return f"{words} with strides {x.stride()}"
    if x._is_zerotensor() or (x.is_cpu and x.numel() and x.data_ptr() == 0):
        return f"{words} without memory"
    return words
