"""SigLIP 2 reads images of different sizes in one batch: each mechanism on the image's own grid, against transformers' own
Siglip2VisionModel under a dense mask, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, Siglip2VisionConfig, Siglip2VisionModel

from hf_longattn.families import LongSiglip2VisionConfig, LongSiglip2VisionModel
from tests.reference.test_packed_images import MECHANISMS

SHAPES = torch.tensor([[5, 3], [2, 7], [4, 4]])
CELLS = 16
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 4, "num_patches": 16}
DENSE = "reference_dense_grids"


def inputs() -> dict[str, Tensor]:
    lengths = SHAPES.prod(1)
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(len(SHAPES), CELLS, 48, dtype=torch.float64, generator=generator),
        "pixel_attention_mask": (torch.arange(CELLS) < lengths[:, None]).long(),
        "spatial_shapes": SHAPES,
    }


@torch.no_grad()
def states(model: Any) -> Tensor:
    """Of the real patches, one image after the other."""
    seen: list[Tensor] = []
    with model.get_submodule("post_layernorm").register_forward_hook(lambda module, args, output: seen.append(output)):
        model(**inputs())
    return seen[0][inputs()["pixel_attention_mask"].bool()]


@pytest.mark.thorough
@pytest.mark.parametrize("name", MECHANISMS)
def test_every_siglip2_image_of_a_batch_is_on_its_own_grid(name: str, tmp_path: Path) -> None:
    attention, sees = MECHANISMS[name]
    torch.manual_seed(0)
    plain: Any = Siglip2VisionModel(Siglip2VisionConfig(**SIZES)).double().eval()
    with torch.no_grad():
        plain.embeddings.position_embedding.weight.normal_()
    plain.save_pretrained(tmp_path)
    patches = torch.arange(CELLS)
    masks = []
    for rows, columns in SHAPES.tolist():
        places = torch.stack([patches // columns, patches % columns], -1)
        real = patches < rows * columns
        masks.append(sees(places[:, None], places[None]) & real[None] | torch.eye(CELLS, dtype=torch.bool))

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **kwargs: Any) -> Any:
        scores = (query @ key.mT * scaling).masked_fill(~torch.stack(masks)[:, None], -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register(DENSE, attend)
    for layer in plain.encoder.layers:
        layer.self_attn.config = Siglip2VisionConfig(**SIZES)
        layer.self_attn.config._attn_implementation = DENSE
    config = LongSiglip2VisionConfig.from_pretrained(tmp_path, long_attention=attention)
    long: Any = LongSiglip2VisionModel.from_pretrained(tmp_path, config=config, dtype=torch.float64).eval()
    assert torch.allclose(states(long), states(plain), rtol=0, atol=1e-12)
    full = Siglip2VisionModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert not torch.allclose(states(long), states(full), rtol=0, atol=1e-3)
