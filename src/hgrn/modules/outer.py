"""The scan of one `HGRN2Mixer` over time.

Shape letters: B batch, T time, H heads, K keys, V values, N sequences.
"""

from typing import Protocol

from torch import Tensor

from hgrn.ops import gla_scan


class OuterScan(Protocol):
    """What an `HGRN2Mixer` calls to run over time: `scan_heads`, or a replacement for it.

    Args:
        q, k: `[B, T, H, K]`.
        v: `[B, T, H, V]`.
        log_f: logarithms of the gates, `[B, T, H, K]`.
        initial_state: `[N, H, K, V]`, or None (zeros).
        mask: bool `[B, T]`.
        cu_seqlens: boundaries `[N + 1]`.

    Returns:
        y like v, and the final state `[N, H, K, V]`.
    """

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_f: Tensor,
        initial_state: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def scan_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_f: Tensor,
    initial_state: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The `OuterScan` on one device."""
    return gla_scan(q, k, v, log_f, initial_state, mask=mask, cu_seqlens=cu_seqlens)
