"""Patches and sines computed by hand, and the numbers of positions."""

import math

import pytest
import torch

from hgrn.modules import PatchEmbedding, positions, sinusoids
from tests.tolerances import assert_close


@pytest.mark.parametrize("size", [1, 2])
def test_patches_are_read_by_row_column_and_channel(size):
    embed = PatchEmbedding(3, size, 5).double()
    pixels = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    found = embed(pixels)
    assert found.shape == (2, 4 // size, 6 // size, 5)
    for row in range(4 // size):
        for column in range(6 // size):
            # The channel changes fastest, then the column, then the row.
            features = [
                pixels[:, channel, row * size + r, column * size + c]
                for r in range(size)
                for c in range(size)
                for channel in range(3)
            ]
            assert_close(found[:, row, column], embed.proj(torch.stack(features, dim=1)))


@pytest.mark.parametrize(
    "pixels, kind, message",
    [
        (
            torch.zeros(2, 1, 4, 4),
            ValueError,
            r"must have shape .* with 3 channel.s., got \(2, 1, 4, 4\); .*num_channels",
        ),
        (torch.zeros(3, 4, 4), ValueError, r"pixel_values must have shape .*got \(3, 4, 4\)"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            TypeError,
            "pixel_values must hold floats.*got torch.uint8; use an image processor",
        ),
        (
            torch.zeros(2, 3, 4, 5),
            ValueError,
            "must be multiples of the patch size 2, and at least that, got 4 x 5; resize or crop",
        ),
        (
            torch.zeros(2, 3, 1, 4),
            ValueError,
            "must be multiples of the patch size 2, and at least that, got 1 x 4",
        ),
        (
            torch.zeros(2, 3, 0, 4),
            ValueError,
            "must be multiples of the patch size 2, and at least that, got 0 x 4",
        ),
    ],
)
def test_images_that_do_not_fit_are_named(pixels, kind, message):
    with pytest.raises(kind, match=message):
        PatchEmbedding(3, 2, 5)(pixels)


def test_positions_leave_out_what_is_masked_and_begin_again_in_each_sequence():
    x = torch.zeros(2, 5, 1)
    assert positions(x).tolist() == [[0, 1, 2, 3, 4]] * 2
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0]]).bool()
    found = positions(x, mask)
    assert found[mask].tolist() == [0, 1, 2, 0, 1, 2]
    packed = torch.zeros(1, 7, 1)
    boundaries = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
    assert positions(packed, cu_seqlens=boundaries).tolist() == [[0, 1, 2, 0, 1, 2, 3]]
    mask = torch.tensor([[0, 1, 1, 1, 0, 1, 1]]).bool()
    assert positions(packed, mask, boundaries)[mask].tolist() == [0, 1, 0, 1, 2]
    with pytest.raises(ValueError, match="cu_seqlens must start at 0"):
        positions(packed, cu_seqlens=torch.tensor([0, 9]))


@pytest.mark.parametrize("dim", [1, 4, 7])
def test_the_table_by_hand(dim):
    numbers = torch.tensor([[0, 1, 16383]])
    table = sinusoids(numbers, dim, torch.float64)
    for n, row in zip(numbers[0].tolist(), table[0], strict=True):
        for channel, value in enumerate(row.tolist()):
            angle = n * 10000.0 ** (-2 * (channel // 2) / dim)
            assert value == pytest.approx(
                math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-10
            )
    # Angles are made in float64, whatever the dtype of the result.
    assert_close(sinusoids(numbers, dim, torch.float32), table)
