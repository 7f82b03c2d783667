"""Models of videos: positions of larger videos, windows of three axes, masks that leave cells out, and what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention

from hf_longattn.engines.common.grid import Grid
from hf_longattn.errors import GridError, MaskError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.generic import enable_long_attention
from hf_longattn.modeling.grids import interpolated_frames
from tests.cells import every_cell
from tests.grids import grid
from tests.modeling.grid_models import VIDEOS, base_model, defined, inputs_of, long_model, saved, seeing, tensors

FULL = {"mechanism": "full"}
LARGER = (8, 3, 48, 48)
"""Frames, channels, height and width of a video larger than that of four frames of 32 pixels for which the small models are made."""


def video(*shape: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, *(shape or LARGER), generator=torch.Generator().manual_seed(1))


def states(model: Any, base: str, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(**{FAMILIES[base].rule.input: pixels}).last_hidden_state


def test_both_families_are_tested_here() -> None:
    assert VIDEOS == ["videomae", "vjepa2"]


@pytest.mark.thorough
@torch.no_grad()
def test_v_jepa_2_counts_on_the_grid_of_the_video_where_the_base_misnumbers(tmp_path: Path) -> None:
    """Tokens of a larger video are numbered by ``crop_size`` in transformers, without a word; a base of that size has their numbers."""
    plain = saved("vjepa2", "VJEPA2Model", tmp_path)
    attention = next(module for module in plain.modules() if isinstance(module, VJEPA2RopeAttention))
    frames, rows, columns = attention.get_position_ids(torch.zeros(1, 4 * 12 * 12, 32))
    expected = Grid((4, 12, 12)).places(torch.arange(4 * 12 * 12))
    assert int(frames[-1]), int(rows[12]) == (8, 1)  # of nine frames; the last one has number 3, and token 12 begins row 1
    assert not any(torch.equal(wrong, right) for wrong, right in zip((frames, rows, columns), expected, strict=True))

    of_that_size = type(plain)(type(plain.config)(**{**plain.config.to_dict(), "crop_size": 48, "frames_per_clip": 8})).eval()
    of_that_size.load_state_dict(plain.state_dict())
    model = long_model("vjepa2", "VJEPA2Model", tmp_path, long_attention=FULL)
    right = tensors(of_that_size(video()))
    for of_long, of_base in zip(tensors(model(video())), right, strict=True):  # the predictor's, too
        torch.testing.assert_close(of_long, of_base, rtol=1e-5, atol=1e-6)
    assert (plain(video()).last_hidden_state - right[0]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("mechanism", [{"mechanism": "full"}, {"mechanism": "window", "window": 4}])
def test_a_stock_v_jepa_2_with_mechanisms_refuses_frames_that_it_would_misnumber(mechanism: dict[str, Any], tmp_path: Path) -> None:
    plain = saved("vjepa2", "VJEPA2Model", tmp_path)
    side, frames = plain.config.crop_size, plain.config.frames_per_clip
    enable_long_attention(plain, mechanism)
    assert plain(torch.randn(1, 2 * frames, 3, side, side)).last_hidden_state.isfinite().all()  # further frames have numbers of their own
    with pytest.raises(GridError, match=f"numbers the tokens of a frame by crop_size={side}, .* --image-size 48 --frames 8"):
        plain(video())
    plain.set_attn_implementation("sdpa")
    assert plain(video()).last_hidden_state.isfinite().all()  # as transformers computes it


@torch.no_grad()
def test_a_larger_config_gives_videomae_other_positions_than_it_was_trained_with(tmp_path: Path) -> None:
    """transformers' table goes by the number of a token, so that a row of a larger video has another one's; ours has the old place's."""
    plain = saved("videomae", "VideoMAEModel", tmp_path)
    table = plain.embeddings.position_embeddings.unflatten(1, (2, 8, 8))
    larger = type(plain)(type(plain.config)(**{**plain.config.to_dict(), "image_size": 48, "num_frames": 8}))
    misnumbered = larger.embeddings.position_embeddings.unflatten(1, (4, 12, 12))
    torch.testing.assert_close(misnumbered[0, 0, 1, 0], table[0, 0, 1, 4])  # the first cell of row 1 is that of row 1, column 4
    lengthened = interpolate(table.permute(0, 4, 1, 2, 3), (4, 8, 8), mode="trilinear", align_corners=False)
    images = interpolate(lengthened[0].transpose(0, 1), (12, 12), mode="bicubic", align_corners=False)
    expected = images.permute(0, 2, 3, 1)[None]
    torch.testing.assert_close(interpolated_frames(table, 4, 12, 12), expected)
    assert (misnumbered - expected).abs().max() > 1

    model = long_model("videomae", "VideoMAEModel", tmp_path, long_attention=FULL)
    larger.load_state_dict(plain.state_dict())
    larger.embeddings.position_embeddings = expected.flatten(1, 3)
    torch.testing.assert_close(states(model, "videomae", video()), states(larger.eval(), "videomae", video()), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("base", VIDEOS)
def test_windows_with_tiled_positions_are_the_base_on_each_crop(base: str, tmp_path: Path) -> None:
    """Of frames, height and width."""
    plain = saved(base, base_model(base), tmp_path)
    attention = {"mechanism": "window2d", "window": [2, 8, 8]}
    model = long_model(base, base_model(base), tmp_path, long_attention=attention, position_extension="tile")
    pixels = video(8, 3, 64, 96)
    cells = states(model, base, pixels).unflatten(1, (4, 16, 24))
    for frame, row, column in itertools.product(range(2), range(2), range(3)):
        crop = pixels[:, 4 * frame : 4 * frame + 4, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        window = cells[:, 2 * frame : 2 * frame + 2, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        torch.testing.assert_close(window, states(plain, base, crop).unflatten(1, (2, 8, 8)), rtol=1e-4, atol=1e-4)


MECHANISMS = ({"mechanism": "window2d", "window": [2, 3, 5], "shift": "alternate"},)


@every_cell(
    ("base", "mechanism"),
    grid(
        itertools.product(VIDEOS, MECHANISMS),
        lambda base, mechanism: (MECHANISMS.index(mechanism) + [*VIDEOS].index(base)) % 2 == 0,
    ),
    ids=lambda value: value if isinstance(value, str) else value["mechanism"],
)
def test_a_mechanism_is_full_attention_with_its_definition_as_a_mask_with_gradients(
    base: str, mechanism: dict[str, Any], tmp_path: Path
) -> None:
    """In float64, on a larger video that no window divides."""
    saved(base, base_model(base), tmp_path)
    model = long_model(base, base_model(base), tmp_path, long_attention=mechanism).double()
    pixels, grid = video(10, 3, 40, 56).double(), Grid((5, 10, 14))
    masks, gradients, outputs = defined(model, grid), [], []
    for masked in (False, True):
        model.zero_grad()
        if masked:
            model.use_base_attention()
            with seeing(model, *masks):
                output = model(**{FAMILIES[base].rule.input: pixels}).last_hidden_state
        else:
            output = model(**{FAMILIES[base].rule.input: pixels}).last_hidden_state
        output.square().mean().backward()
        outputs.append(output.detach())
        gradients.append([parameter.grad for name, parameter in model.named_parameters() if "predictor." not in name])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_masked_patches_are_seen_by_places_in_encoder_and_decoder(tmp_path: Path) -> None:
    base, head = "videomae", "VideoMAEForPreTraining"
    plain = saved(base, head, tmp_path)
    inputs, grid = inputs_of(base, head=head), Grid((2, 8, 8))
    attention: list[dict[str, Any]] = [{"mechanism": "window2d", "window": [1, 3, 3]}, {"mechanism": "window2d", "window": [2, 4, 3]}]
    model = long_model(base, head, tmp_path, long_attention=attention[0], decoder_long_attention=attention[1])
    order = inputs["bool_masked_pos"].int().argsort(dim=1, stable=True)
    of_encoder = [torch.stack([mask[row][:, row] for row in order[:, :64]])[:, None] for mask in defined(model.videomae, grid)]
    of_decoder = [torch.stack([mask[row][:, row] for row in order])[:, None] for mask in defined(model.decoder, grid)]
    with seeing(plain.videomae, *of_encoder), seeing(plain.decoder, *of_decoder):
        expected = plain(**inputs)
    output = model(**inputs)
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.loss, expected.loss)
    model.save_pretrained(tmp_path / "long")
    loaded = FAMILIES[base].model_class(head).from_pretrained(tmp_path / "long").eval()
    assert torch.equal(loaded(**inputs).logits, output.logits)
    model.use_base_attention()
    torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("extension", ["interpolate", "tile"])
def test_masked_patches_of_a_larger_video_are_rebuilt(extension: str, tmp_path: Path) -> None:
    base, head = "videomae", "VideoMAEForPreTraining"
    saved(base, head, tmp_path)
    model = long_model(base, head, tmp_path, long_attention=MECHANISMS[0], position_extension=extension).train()
    mask = torch.rand(2, 4 * 12 * 12).argsort(1) < 300
    output = model(video(batch=2), mask)
    assert output.logits.shape == (2, 300, 2 * 4 * 4 * 3)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@torch.no_grad()
def test_a_image_as_one_frame_is_repeated_as_v_jepa_2_does(tmp_path: Path) -> None:
    plain = saved("vjepa2", "VJEPA2Model", tmp_path)
    model = long_model("vjepa2", "VJEPA2Model", tmp_path, long_attention=FULL)
    for of_base, of_long in zip(tensors(plain(video(1, 3, 32, 32))), tensors(model(video(1, 3, 32, 32))), strict=True):
        torch.testing.assert_close(of_long, of_base, rtol=1e-5, atol=1e-6)


class TestRefusals:
    @pytest.mark.parametrize(
        ("shape", "sentence"),
        [
            ((5, 3, 32, 32), r"has 5 frames, which is not a multiple of the tubelet's 2; leave frames out, for example read 4"),
            ((1, 3, 32, 32), r"has 1 frame, fewer than the 2 of a tubelet; give at least 2"),
            ((4, 3, 30, 32), r"height of an input is 30 pixels.*multiple of the patch's 4; resize it, for example to 32"),
            ((3, 32, 32), r"has shape \(1, 3, 32, 32\), which is an image; a video is \(batch, frames, channels, height, width\)"),
            ((4, 32, 32, 3), r"must be .*with 3 channels; move the axes, for example with pixels.movedim\(-1, 2\)"),
        ],
    )
    def test_videos(self, shape: tuple[int, ...], sentence: str, tmp_path: Path) -> None:
        saved("videomae", "VideoMAEModel", tmp_path)
        with pytest.raises(GridError, match=sentence):
            long_model("videomae", "VideoMAEModel", tmp_path, long_attention=FULL)(video(*shape))

    def test_a_mask_of_other_cells(self, tmp_path: Path) -> None:
        saved("videomae", "VideoMAEForPreTraining", tmp_path)
        model = long_model("videomae", "VideoMAEForPreTraining", tmp_path)
        uneven = torch.zeros(2, 128, dtype=torch.bool)
        uneven[0, :3] = True
        for mask in (torch.ones(2, 100, dtype=torch.bool), uneven):
            with pytest.raises(MaskError, match=r"bool_masked_pos has shape .* must be \(batch, 128\), bool, with equally many"):
                model(video(4, 3, 32, 32, batch=2), mask)

    @pytest.mark.parametrize("base", VIDEOS)
    def test_a_config(self, base: str) -> None:
        with pytest.raises(OptionError, match="long_num_frames is 0, but must be a number of frames"):
            FAMILIES[base].config_class(long_num_frames=0)
        with pytest.raises(GridError, match="An image size is 'large'"):
            FAMILIES[base].config_class(long_image_size="large")
