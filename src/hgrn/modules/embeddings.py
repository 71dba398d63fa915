"""What stands in front of a stack: the embedding of patches, and numbers and sines of positions.

Shape letters: B batch, C channels of an image, H, W its rows and columns, P rows and columns of a
patch, T positions, D channels.
"""

import torch
from torch import Tensor, nn

from hgrn.modules.linear import Linear
from hgrn.ops.packing import check_cu_seqlens, sequence_ids


class PatchEmbedding(nn.Module):
    """A linear map of each patch (the authors' image code: hgrn/model_vit.py).

    With P = 1 it maps each pixel, as in the authors' Long Range Arena code.

    Args:
        channels: C.
        size: P.
        dim: D.

    The features of a patch are ordered row, column, channel; the channel changes fastest.

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
                "pixel_values must have shape [batch, channels, height, width] with "
                f"{self.channels} channel(s), got {tuple(pixels.shape)}; turn the images into that "
                "form, or set num_channels in the configuration"
            )
        if not pixels.is_floating_point():
            raise TypeError(
                "pixel_values must hold floats, normed as the model was trained, got "
                f"{pixels.dtype}; use an image processor, or divide by 255"
            )
        height, width = pixels.shape[2:]
        if height == 0 or width == 0 or height % self.size or width % self.size:
            raise ValueError(
                "height and width of pixel_values must be multiples of the patch size "
                f"{self.size}, and at least that, got {height} x {width}; resize or crop the images"
            )
        # Whoever makes images does not know the model's precision. Quantized weights take float32.
        if self.proj.weight.is_floating_point():
            pixels = pixels.to(self.proj.weight.dtype)
        # [B, C, H, W] -> [B, C, H / P, P, W / P, P] -> [B, H / P, W / P, P, P, C]
        patches = pixels.unflatten(3, (-1, self.size)).unflatten(2, (-1, self.size))
        return self.proj(patches.permute(0, 2, 4, 3, 5, 1).flatten(3))


def positions(x: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
    """The number of each position in its sequence, not counting masked positions.

    Args:
        x: `[B, T, ...]`.
        mask: bool `[B, T]`, False where there is no input.
        cu_seqlens: boundaries `[N + 1]` of sequences packed into x `[1, T, ...]`.

    Returns:
        `[B, T]`; the numbers of masked positions mean nothing.

    Raises:
        ValueError, TypeError: cu_seqlens are no boundaries of T positions.
    """
    if mask is None:
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    before = mask.cumsum(1) - mask.long()
    if cu_seqlens is None:
        return before
    # A graph cannot read the values of a tensor.
    if not torch.compiler.is_compiling():
        check_cu_seqlens(cu_seqlens, x.shape[1])
    # How many positions are kept before each one; the last entry is how many are kept in all.
    kept_before = torch.nn.functional.pad(mask[0].cumsum(0), (1, 0))
    at_starts = kept_before[cu_seqlens[:-1].long()]
    return before - at_starts[sequence_ids(cu_seqlens, x.shape[1])]


def sinusoids(numbers: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The sines of Vaswani et al. (2017): `[...]` -> `[..., dim]`.

    Channel 2i is the sine and channel 2i + 1 the cosine of `n * 10000^(-2i / dim)`. The angles are
    made in float64, so they are exact for long sequences.
    """
    turns = 10000.0 ** (-torch.arange(0, dim, 2, device=numbers.device, dtype=torch.float64) / dim)
    angles = numbers.double()[..., None] * turns
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :dim].to(dtype)
