"""The arguments of `gla_scan`: how they are checked, and the one record that every engine takes.

Shape letters, here and wherever `gla_scan` is computed: B batch, T time, H heads, K keys, V values,
N sequences (N = B unless packed).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hgrn.ops.arguments import at_least_float32, check_floating
from hgrn.ops.packing import check_boundaries, check_cu_seqlens


class GlaScan(NamedTuple):
    """One `gla_scan`: what an engine is given.

    q, k: `[B, T, H, K]`. v: `[B, T, H, V]`, all three of one dtype.
    log_f: `[B, T, H, K]` in the state's dtype, `at_least_float32` of theirs.
    initial_state: `[N, H, K, V]` in the state's dtype; None is zeros.
    cu_seqlens: boundaries `[N + 1]`, if sequences are packed.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_f: Tensor
    initial_state: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def sequences(self) -> int:
        """N."""
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shape(self) -> tuple[int, ...]:
        """`[N, H, K, V]`."""
        return (self.sequences, self.q.shape[2], self.q.shape[3], self.v.shape[3])

    def check_values(self) -> None:
        """Raises ValueError for boundaries out of range; reads them on a CPU only."""
        if self.cu_seqlens is not None:
            check_cu_seqlens(self.cu_seqlens, self.q.shape[1])


def checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
) -> GlaScan:
    """The arguments as a record. Masked positions keep the state and add nothing to it.

    Raises:
        ValueError, TypeError: an argument has another shape, dtype or device; the message names it.
    """
    named = {"q": q, "k": k, "v": v, "log_f": log_f}
    for name, x in named.items():
        check_floating(x, name)
        _check_device(x, name, q)
        if x.dtype != q.dtype and name != "log_f":
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
    if q.ndim != 4:
        raise ValueError(f"q must have shape [B, T, H, K], got {tuple(q.shape)}")
    for name in ("k", "log_f"):
        if named[name].shape != q.shape:
            raise ValueError(
                f"{name} must have q's shape {tuple(q.shape)}, got {tuple(named[name].shape)}"
            )
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        wanted = ", ".join(map(str, q.shape[:3]))
        raise ValueError(
            f"v must have shape ({wanted}, V), q's but for the last axis, got {tuple(v.shape)}"
        )
    if cu_seqlens is not None:
        check_boundaries(cu_seqlens)
        _check_device(cu_seqlens, "cu_seqlens", q)
        if q.shape[0] != 1:
            raise ValueError(
                "packed sequences need q of shape [1, total, H, K], got "
                f"{tuple(q.shape)}; lay the sequences end to end along axis 1"
            )
    wide = at_least_float32(q.dtype)
    log_f = log_f.to(wide)
    if mask is not None:
        _check_mask(mask, q)
        kept = mask[..., None, None]
        k = torch.where(kept, k, 0)
        v = torch.where(kept, v, 0)  # not a number times zero would be none
        log_f = torch.where(kept, log_f, 0)
    scan = GlaScan(q, k, v, log_f, None, cu_seqlens)
    if initial_state is None:
        return scan
    check_floating(initial_state, "initial_state")
    _check_device(initial_state, "initial_state", q)
    if initial_state.shape != scan.state_shape:
        raise ValueError(
            f"initial_state must have shape {scan.state_shape} (sequences, heads, keys, values), "
            f"got {tuple(initial_state.shape)}"
        )
    return scan._replace(initial_state=initial_state.to(wide))


def _check_device(x: Tensor, name: str, q: Tensor) -> None:
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device} but q on {q.device}; move it there")


def _check_mask(mask: Tensor, q: Tensor) -> None:
    rule = "mask must be a bool tensor (True where there is input)"
    if not isinstance(mask, Tensor):
        raise TypeError(f"{rule}, got {type(mask).__name__}; torch.as_tensor(mask) makes one")
    _check_device(mask, "mask", q)
    if mask.dtype != torch.bool:
        raise TypeError(f"{rule}, got {mask.dtype}; use mask.bool()")
    if mask.shape != q.shape[:2]:
        raise ValueError(
            f"mask must have the first two axes of q, {tuple(q.shape[:2])}, got {tuple(mask.shape)}"
        )
