"""Mixup, cutmix and label smoothing, one draw for a whole batch.

mixup: Zhang et al., 2018; cutmix: Yun et al., 2019; smoothing: Szegedy et al., 2016. The rule
for a batch is that of timm, with which the published models were trained: the first image is mixed
with the last, the second with the last but one, and so on.
"""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Mixing:
    """The section `mixing` of a recipe; everything is off by default.

    mixup, cutmix: the alpha of Beta(alpha, alpha), 0 for none. probability: of mixing a batch at
    all. switch: the probability of cutmix rather than mixup where both are on. smoothing: the share
    of a label that is spread over all classes.
    """

    __pydantic_config__ = {"extra": "forbid"}

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.0

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = [
            f"{name} must be at least 0; got {getattr(self, name)}"
            for name in ("mixup", "cutmix")
            if getattr(self, name) < 0
        ]
        found += [
            f"{name} must be in [0, 1]; got {getattr(self, name)}"
            for name in ("probability", "switch")
            if not 0 <= getattr(self, name) <= 1
        ]
        if not 0 <= self.smoothing < 1:
            found.append(f"smoothing must be in [0, 1); got {self.smoothing}")
        return found


def label_matrix(labels: torch.Tensor, classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Targets float32 [B, K]: smoothing / K everywhere, and 1 - smoothing more at the label.

    labels: int64 [B]. classes: K.
    """
    off = smoothing / classes
    matrix = torch.full((len(labels), classes), off, device=labels.device)
    return matrix.scatter_(1, labels.unsqueeze(1), 1 - smoothing + off)


def mix(
    images: torch.Tensor, labels: torch.Tensor, classes: int, mixing: Mixing, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed images [B, C, H, W] and targets float32 [B, K]; the arguments are left as they are.

    One share lambda holds for the batch: image i keeps lambda of itself (of its values, or of its
    area) and takes the rest from image B - 1 - i; its target does the same. Equal seeds mix alike.
    """
    targets = label_matrix(labels, classes, mixing.smoothing)
    random = np.random.default_rng(seed)
    if not (mixing.mixup or mixing.cutmix) or random.random() >= mixing.probability:
        return images, targets
    # One draw for the whole batch, also where both are on.
    cut = mixing.cutmix > 0 and (mixing.mixup == 0 or random.random() < mixing.switch)
    alpha = mixing.cutmix if cut else mixing.mixup
    share = float(random.beta(alpha, alpha))
    if cut:
        height, width = images.shape[-2:]
        top, bottom, left, right = _box(height, width, share, random)
        # The image's border may cut the box, so the share is that of the box as it is.
        share = 1 - (bottom - top) * (right - left) / (height * width)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    else:
        mixed = images * share + images.flip(0) * (1 - share)
    return mixed, targets * share + targets.flip(0) * (1 - share)


def _box(
    height: int, width: int, share: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box with 1 - share of the area, cut at the image's border.

    Its centre is uniform over the image.
    """
    scale = (1 - share) ** 0.5

    def edges(size: int) -> tuple[int, int]:
        centre = int(random.integers(size))
        half = int(size * scale) // 2
        return max(centre - half, 0), min(centre + half, size)

    return *edges(height), *edges(width)
