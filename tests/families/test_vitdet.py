"""LongVitDet: windows padded with zeros in some layers and full attention in the others, as transformers' ViTDet computes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Trainer, TrainingArguments, VitDetBackbone, VitDetConfig, VitDetModel

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.engines.common.grid import Grid
from hf_longattn.errors import OptionError
from hf_longattn.families.vitdet import interpolated_rows
from hf_longattn.modeling.attach.attention_sites import layer_mechanisms
from tests.cells import every_cell

SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 4, "image_size": 32, "pretrain_image_size": 32,
    "window_size": 3, "window_block_indices": [0, 2], "residual_block_indices": [1], "mlp_ratio": 2,
}  # fmt: skip
HEADS = {"VitDetModel": VitDetModel, "VitDetBackbone": VitDetBackbone}
RELATIVE = {"use_relative_position_embeddings": True}
IMAGES = [(32, 32), (24, 36), (28, 40), (64, 52), (8, 8)]
"""The size of pre-training; one that windows divide, two that they do not, and one that is smaller than a window."""


def saved(folder: Path, head: str = "VitDetModel", **values: Any) -> Any:
    """A small checkpoint whose every parameter shows in its outputs."""
    torch.manual_seed(0)
    outputs = {"out_indices": [1, 2, 4]} if head == "VitDetBackbone" else {}
    model: Any = HEADS[head](VitDetConfig(**{**SIZES, **outputs, **values})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def maps(outputs: Any) -> list[torch.Tensor]:
    """The maps of features and the hidden states."""
    return [*getattr(outputs, "feature_maps", [outputs[0]]), *outputs.hidden_states]


@every_cell("head", HEADS, pairs=True)
@every_cell("size", IMAGES, ids=str)
@every_cell("values", [{}, {"qkv_bias": False}, RELATIVE], ids=["biases", "no biases", "relative positions"])
def test_states_and_gradients_are_transformers(head: str, size: tuple[int, int], values: dict[str, Any], tmp_path: Path) -> None:
    """With the mechanisms and with the attention of the base, those of biases included, which padding shares with its layer."""
    theirs = saved(tmp_path, head, **values).double()
    ours: Any = getattr(hf_longattn, f"Long{head}").from_pretrained(tmp_path).double().eval()
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }
    pixels = torch.randn(2, 3, *size, dtype=torch.double)
    wanted = maps(theirs(pixels, output_hidden_states=True))
    sum(state.sin().mean() for state in wanted).backward()
    gradients = dict(theirs.named_parameters())
    for implementation in ("longattn", "eager"):
        if implementation == "eager":
            ours.use_base_attention()
        ours.zero_grad()
        states = maps(ours(pixels, output_hidden_states=True))
        sum(state.sin().mean() for state in states).backward()
        for state, expected in zip(states, wanted, strict=True):
            torch.testing.assert_close(state, expected)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=lambda text, name=name: f"{name}: {text}")


def test_default_layers(tmp_path: Path) -> None:
    saved(tmp_path)
    model = hf_longattn.LongVitDetModel.from_pretrained(tmp_path)
    assert [layer.name for layer in layer_mechanisms(model)] == ["window2d", "full", "window2d", "full"]
    assert model.config._computes_as_base
    other = hf_longattn.LongVitDetModel.from_pretrained(tmp_path, long_attention={"mechanism": "window2d", "window": 3})
    assert {layer.options.window for layer in layer_mechanisms(other)} == {(3,)}
    assert not other.config._computes_as_base


@torch.no_grad()
def test_a_copy_has_the_padding_of_its_own_layers(tmp_path: Path) -> None:
    saved(tmp_path)
    model = hf_longattn.LongVitDetModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 32, 32)
    before, other = model(pixels).last_hidden_state, copy.deepcopy(model)
    for layer in other.encoder.layer:
        layer.attention.qkv.bias.add_(1.0)
    torch.testing.assert_close(model(pixels).last_hidden_state, before, rtol=0, atol=0)
    changed = other(pixels).last_hidden_state
    other.use_base_attention()
    torch.testing.assert_close(changed, other(pixels).last_hidden_state)


@torch.no_grad()
def test_tiled_positions_repeat(tmp_path: Path) -> None:
    saved(tmp_path)
    model = hf_longattn.LongVitDetModel.from_pretrained(tmp_path, position_extension="tile")
    embeddings: Any = model.embeddings
    table = embeddings.position_embeddings[0, 1:].view(8, 8, -1)
    tiled = embeddings.get_absolute_positions(embeddings.position_embeddings, True, 10, 16)
    torch.testing.assert_close(tiled[0, :8, 8:], table)
    torch.testing.assert_close(tiled[0, 8:, :8], table[:2])


@pytest.mark.parametrize("head", HEADS)
def test_converted_verified_and_loaded(head: str, tmp_path: Path) -> None:
    source, long = tmp_path / "source", tmp_path / "long"
    plain = saved(source, head)
    report = convert_checkpoint(source, long, image_size="40x64")
    assert report.passed
    checks = {check.name: check for check in report.checks}
    for name in ("equal where the mechanism covers the input", "equal at the new size with the attention of the base", "at the new size"):
        assert checks[name].status == "passed"
    assert report.plan["tensor_counts"]["kept"] == sum(report.plan["tensor_counts"].values())
    assert (report.plan["old_grid"], report.plan["new_grid"]) == ([8, 8], [10, 16])
    auto: Any = hf_longattn.LongVitDetBackbone if head == "VitDetBackbone" else AutoModel
    model = auto.from_pretrained(long).eval()
    assert type(model) is getattr(hf_longattn, f"Long{head}")
    pixels = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels)[0], plain(pixels)[0])


def test_a_detector_keeps_its_size(tmp_path: Path) -> None:
    """Of a checkpoint trained further on larger images, the position table is smaller than the grid."""
    saved(tmp_path / "source", image_size=64)
    plan = plan_conversion(tmp_path / "source")
    assert (plan.inputs.old.value, plan.inputs.new.value, plan.positions) == ((32, 32), (64, 64), "interpolate")
    assert not plan.warnings
    assert plan_conversion(tmp_path / "source", image_size=96).warnings


def test_a_step_of_training(tmp_path: Path) -> None:
    saved(tmp_path)
    model = hf_longattn.LongVitDetModel.from_pretrained(tmp_path)

    class WithLoss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor, labels: Any = None) -> Any:
            return {"loss": self.model(pixel_values).last_hidden_state.sin().mean()}

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    Trainer(WithLoss(), arguments, train_dataset=[{"pixel_values": torch.randn(3, 40, 56), "labels": 0} for _ in range(4)]).train()
    assert not [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


def test_without_its_position_table(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="transformers builds no ViTDet without its position table"):
        hf_longattn.LongVitDetConfig(use_absolute_position_embeddings=False)


@pytest.mark.thorough
@pytest.mark.parametrize("chosen", [{"mechanism": "window2d", "window": 5}, {"mechanism": "full"}])
@torch.no_grad()
def test_relative_positions_of_other_mechanisms(chosen: dict[str, Any], tmp_path: Path) -> None:
    """A layer that had windows keeps its rows, of which further distances have the last; the others interpolate theirs to the grid."""
    saved(tmp_path, **RELATIVE)
    model = hf_longattn.LongVitDetModel.from_pretrained(tmp_path, long_attention=chosen).double().eval()
    for layer in (0, 1):
        attention: Any = model.encoder.layer[layer].attention
        states = torch.randn(1, 10, 7, 24, dtype=torch.double)
        query, key, value = attention.qkv(states).view(1, 70, 3, 2, 12).permute(2, 0, 3, 1, 4)
        scores = query @ key.mT * attention.scale
        for axis, (size, table) in enumerate(zip((10, 7), (attention.rel_pos_h, attention.rel_pos_w), strict=True)):
            rows = table if layer == 0 else interpolated_rows(table, 2 * size - 1)
            most = len(rows) // 2
            for i in range(70):
                for j in range(70):
                    distance = divmod(i, 7)[axis] - divmod(j, 7)[axis]
                    scores[0, :, i, j] += query[0, :, i] @ rows[most + min(most, max(-most, distance))]
        mechanism = layer_mechanisms(model)[layer]
        seen = (
            mechanism.on_grid(Grid((10, 7))).mask_mod(False, None)(0, 0, torch.arange(70)[:, None], torch.arange(70))
            if mechanism.reads_grid
            else True
        )
        expected = scores.masked_fill(~torch.as_tensor(seen), -torch.inf).softmax(-1) @ value
        expected = attention.proj(expected.transpose(1, 2).flatten(2)).unflatten(1, (10, 7))
        torch.testing.assert_close(attention(states)[0], expected)


def test_relative_positions_need_scores(tmp_path: Path) -> None:
    saved(tmp_path, **RELATIVE)
    with pytest.raises(OptionError, match="adds relative positions to its attention scores"):
        hf_longattn.LongVitDetModel.from_pretrained(tmp_path, long_attention={"mechanism": "linear"})
