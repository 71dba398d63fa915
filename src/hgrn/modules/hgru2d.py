"""HGRU2d: the token mixer of HGRN over grids."""

from torch import Tensor

from hgrn.modules.hgru import HGRU


class HGRU2d(HGRU):
    """An HGRU whose scans run along both axes of a grid and are summed before the read-out (the authors' Hgru2d).

    Takes the arguments of `HGRU`: two scans (down and right), or four if bidirectional; theta is shared by
    both axes. Neither axis is ever transposed in memory. There is no conv_size: the convolution is one of sequences.
    """

    def __init__(self, dim: int, **options):
        if options.get("conv_size") is not None:
            raise ValueError(
                f"conv_size={options['conv_size']}: an HGRU2d has no convolution; pass conv_size=None"
            )
        super().__init__(dim, **options)

    def forward(
        self,
        x: Tensor,
        lower_bound: Tensor | None = None,
        state: None = None,
        mask: None = None,
        cu_seqlens: None = None,
    ) -> tuple[Tensor, None]:
        """x `[B, H, W, D]`, lower_bound `[D]` or None (0) -> y like x, and None: a grid carries no state.

        Raises:
            ValueError: x has another shape, or an argument that only sequences have is given.
        """
        self._check(x, "[B, H, W, D]")
        for name, given in dict(state=state, mask=mask, cu_seqlens=cu_seqlens).items():
            if given is not None:
                raise ValueError(
                    f"a grid is read whole and has no {name}, which belongs to sequences; pass {name}=None"
                )
        candidate, forget, gate = self.project(x)
        h, _ = self._scan(candidate, forget, (1, 2), lower_bound)
        return self._read_out(h, gate), None
