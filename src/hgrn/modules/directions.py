"""The scans of one `HGRU`: from the front, from the end, along the rows and columns of a grid.

Shape letters: B batch, T time, H, W rows and columns of a grid, D channels, N packed sequences,
C = D (real state) or 2D (complex, [Re | Im]).
"""

from typing import Protocol

from torch import Tensor

from hgrn.ops import hgru_scan

Direction = tuple[bool, Tensor | None]  # whether the scan runs in reverse, and its theta


class DirectionalScan(Protocol):
    """What an `HGRU` calls to run over time: `scan_directions`, or a replacement for it.

    Args:
        candidate: `[B, T, C]`, before its activation.
        forget: `[B, T, D]`, before its activation.
        lower_bound: `[D]`, or None (0).
        directions: each adds a scan of its own to the result.
        initial_state: `[N, C]`, or None (zeros); it enters all scans.
        mask: bool `[B, T]`.
        cu_seqlens: boundaries `[N + 1]`.

    Returns:
        the sum of the scans, like candidate, and the final state of the first of them, `[N, C]`.
    """

    def __call__(
        self,
        candidate: Tensor,
        forget: Tensor,
        lower_bound: Tensor | None,
        directions: list[Direction],
        initial_state: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def scan_directions(
    candidate: Tensor,
    forget: Tensor,
    lower_bound: Tensor | None,
    directions: list[Direction],
    initial_state: Tensor | None = None,
    *,
    dims: tuple[int, ...] = (1,),
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A `DirectionalScan` on one device.

    dims: the axes to scan along; for a grid `[B, H, W, C]` there are two.
    """
    # All scans read the same projections, so nothing is copied for a direction or an axis.
    (h, final), *others = [
        hgru_scan(
            candidate,
            forget,
            lower_bound,
            theta,
            initial_state,
            dim=dim,
            reverse=reverse,
            mask=mask,
            cu_seqlens=cu_seqlens,
        )
        for dim in dims
        for reverse, theta in directions
    ]
    for other, _ in others:
        h = h + other
    return h, final
