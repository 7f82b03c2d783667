"""The masks and positions under which a short model is trained for its later conversion."""

from __future__ import annotations

import torch

from scripts.dev.studies.varied_windows import random_positions, window_mask


def test_random_positions_stay_in_the_position_table() -> None:
    generator, starts = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        ids = random_positions(torch.tensor([5, 3]), 400, 512, generator)
        assert ids.shape == (2, 400)
        for part in (ids[0, :5], ids[0, 5:]):
            assert set((part.diff() % 512).tolist()) == {1}
        assert 0 <= ids.min() <= ids.max() < 512
        starts.add((int(ids[0, 0]), int(ids[0, 5])))
    assert len(starts) > 10


def test_window_mask_hides_what_longformer_attention_hides() -> None:
    first, real = torch.tensor([3, 3]), torch.ones(2, 20, dtype=torch.long)
    real[1, 8:] = 0
    mask = window_mask(first, real, 4)
    assert mask.shape == (2, 1, 20, 20)
    places = torch.arange(20)
    expected = ((places[:, None] - places).abs() <= 4) | (places < 3) | (places[:, None] < 3)
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal(mask[1, 0], expected & (places < 8))


def test_positions_and_masks_are_on_the_device_of_the_batch() -> None:
    first, real = torch.tensor([3, 3], device="meta"), torch.ones(2, 20, dtype=torch.long, device="meta")
    assert random_positions(first, 20, 512, torch.Generator()).device.type == "meta"
    assert window_mask(first, real, 4).device.type == "meta"
