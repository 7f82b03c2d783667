"""Real photographs without a download: the two that come with scikit-learn, where it is installed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

NAMES = ("china.jpg", "flower.jpg")


@cache
def photographs() -> tuple[Tensor, ...]:
    """scikit-learn's photographs of 427 × 640 pixels, ``(3, height, width)`` uint8. Empty without scikit-learn or Pillow."""
    try:
        from sklearn.datasets import load_sample_image

        return tuple(torch.tensor(load_sample_image(name)).permute(2, 0, 1) for name in NAMES)
    except ImportError:
        return ()
