"""What a stack reads of images, and how it is told where a position is.

Shape letters: B batch, C channels of an image, H, W its rows and columns, P rows and columns of a patch, T positions, D channels.
"""

import torch
from torch import Tensor, nn

from hgrn.modules.linear import Linear
from hgrn.ops.packing import check_cu_seqlens, sequence_ids


class PatchEmbedding(nn.Module):
    """A linear map of each patch (the authors' image code: hgrn/model_vit.py), of each pixel with P = 1 (their code for LRA).

    Args:
        channels: C.
        size: P.
        dim: D.

    The features of a patch are ordered row, column, channel, the last the fastest.

    Shape:
        `[B, C, H, W]` of any floats -> `[B, H / P, W / P, D]` in the weights' dtype.
    """

    def __init__(self, channels: int, size: int, dim: int):
        super().__init__()
        self.channels = channels
        self.size = size
        self.proj = Linear(size * size * channels, dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """
        Raises:
            ValueError, TypeError: pixels has another shape, or holds integers.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ValueError(
                f"pixel_values must have shape [batch, channels, height, width] with {self.channels} channel(s), got "
                f"{tuple(pixels.shape)}; turn the images into that form, or set num_channels in the configuration"
            )
        if not pixels.is_floating_point():
            raise TypeError(
                f"pixel_values must hold floats, normed as the model was trained, got {pixels.dtype}; use an image processor, or "
                "divide by 255"
            )
        height, width = pixels.shape[2:]
        if height == 0 or width == 0 or height % self.size or width % self.size:
            raise ValueError(
                f"height and width of pixel_values must be multiples of the patch size {self.size}, and at least that, got "
                f"{height} x {width}; resize or crop the images"
            )
        if (
            self.proj.weight.is_floating_point()
        ):  # else it is quantized, and takes floats all the same
            pixels = pixels.to(
                self.proj.weight.dtype
            )  # those that make images know nothing of the model's precision
        rows = pixels.unflatten(3, (-1, self.size)).unflatten(
            2, (-1, self.size)
        )  # [B, C, H / P, P, W / P, P]
        return self.proj(rows.permute(0, 2, 4, 3, 5, 1).flatten(3))


def positions(x: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
    """The number of each position in its sequence, `[B, T]` for x `[B, T, ...]`; those that are masked do not count."""
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    before = mask.cumsum(1) - mask.long()
    if cu_seqlens is None:
        return before
    if not torch.compiler.is_compiling():
        check_cu_seqlens(cu_seqlens, x.shape[1])
    total = torch.nn.functional.pad(
        mask[0].cumsum(0), (1, 0)
    )  # kept positions before each, and in all
    return before - total[cu_seqlens[:-1].long()][sequence_ids(cu_seqlens, x.shape[1])]


def sinusoids(numbers: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """`sin` in the even and `cos` in the odd channels, of `n * 10000^(-2i / dim)` (Vaswani et al. 2017): `[...]` -> `[..., dim]`."""
    turns = 10000.0 ** (-torch.arange(0, dim, 2, device=numbers.device, dtype=torch.float64) / dim)
    angles = numbers.double()[..., None] * turns
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim].to(dtype)
