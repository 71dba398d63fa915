"""Addresses of tensors: the one place that takes them, and that refuses where there is none.

A kernel reads and writes at an address and cannot check what lies there. So whatever is not plain
memory of the CPU must be stopped here: tensor subclasses (quantized weights, fake or distributed
tensors), tensors of another device or dtype, tensors that are only marked as negated, and tensors
without memory (meta, lazy zeros, freed storage).
"""

from typing import NoReturn

import torch
from torch import Tensor, nn

_PLAIN_TYPES = frozenset((Tensor, nn.Parameter))


class HoldsAddresses:
    """Can be neither copied nor pickled: a copy would hold the addresses of the original."""

    def __reduce_ex__(self, protocol: int) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds addresses of memory and can be neither copied nor "
            "pickled; make it anew from its tensors"
        )


class Places:
    """Where tensors lie now.

    It keeps their memory alive, so that no other tensor can be put there.
    """

    def __init__(self, tensors: list[Tensor]):
        self._kept = [x.detach() for x in tensors]
        self._where = [x.data_ptr for x in tensors]
        self._before = [where() for where in self._where]

    def have_changed(self) -> bool:
        """Whether one of the tensors lies elsewhere."""
        return [where() for where in self._where] != self._before


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor of PyTorch's own type whose values are in memory, on any device."""
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
    """`address`, but only the last axis must be contiguous."""
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
    except RuntimeError:
        # It has no storage: another layout, or a tensor inside of a transform.
        _refuse(x, dtype)
    # Zeros without memory, or a storage that was freed.
    if begin == 0 and x.numel():
        _refuse(x, dtype)
    return begin


def _refuse(x: Tensor, dtype: torch.dtype) -> NoReturn:
    raise ValueError(
        f"a CPU kernel needs {dtype} in plain contiguous memory of the CPU, got {describe(x)}"
    )


def describe(x: Tensor) -> str:
    """x as a kernel sees it, in words for an error."""
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
