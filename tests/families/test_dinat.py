"""LongDinat: DiNAT checkpoints run without NATTEN, by what NATTEN 0.14 to 0.17 computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    DinatConfig,
    DinatModel,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
)
from transformers.models.dinat import modeling_dinat as stock

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import BackendError, OptionError, PositionError
from hf_longattn.inspect import diagnose
from hf_longattn.modeling.attach import dinat_base
from hf_longattn.modeling.attach.attention_sites import layer_mechanisms
from tests.cells import every_cell

SIZES: dict[str, Any] = {
    "embed_dim": 12, "depths": [2, 1, 2], "num_heads": [2, 4, 4], "kernel_size": 3, "dilations": [[1, 3], [2], [1, 2]],
    "layer_scale_init_value": 0.5, "num_labels": 5,
}  # fmt: skip


def saved(folder: Path, head: str = "DinatForImageClassification", **values: Any) -> None:
    """A small checkpoint whose every parameter shows in its outputs."""
    torch.manual_seed(0)
    model = getattr(dinat_base, head)(DinatConfig(**{**SIZES, **values})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


def window_start(index: int, length: int, kernel: int, dilation: int) -> int:
    """NATTEN's get_window_start, natten_commons.h of 0.14 to 0.17."""
    half = kernel // 2
    if dilation <= 1:
        return max(index - half, 0) + (index + half >= length) * (length - index - half - 1)
    if index - half * dilation < 0:
        return index % dilation
    if index + half * dilation >= length:
        remainder, whole = index % dilation, length // dilation * dilation
        rest = length - whole
        return length - rest + remainder - 2 * half * dilation if remainder < rest else whole + remainder - kernel * dilation
    return index - half * dilation


def bias_start(index: int, length: int, kernel: int, dilation: int) -> int:
    """NATTEN's get_pb_start."""
    half = kernel // 2
    if dilation <= 1:
        return half + (index < half) * (half - index) + (index + half >= length) * (length - index - 1 - half)
    if index - half * dilation < 0:
        return kernel - 1 - index // dilation
    if index + half * dilation >= length:
        return (length - index - 1) // dilation
    return half


def natten(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor, kernel: int, dilation: int) -> Tensor:
    """natten2dqkrpb, softmax and natten2dav of ``(B, H, height, width, D)``, cell by cell."""
    height, width = q.shape[2:4]
    rows = []
    for i in range(height):
        for j in range(width):
            at = [window_start(i, height, kernel, dilation), window_start(j, width, kernel, dilation)]
            bias = [bias_start(i, height, kernel, dilation), bias_start(j, width, kernel, dilation)]
            seen = [slice(first, first + dilation * (kernel - 1) + 1, dilation) for first in at]
            of_bias = [slice(first, first + kernel) for first in bias]
            keys, values = (x[:, :, seen[0], seen[1]].flatten(2, 3) for x in (k, v))
            assert keys.shape[2] == kernel**2
            scores = (keys @ q[:, :, i, j, :, None])[..., 0] + rpb[:, of_bias[0], of_bias[1]].flatten(1)
            rows.append((scores.softmax(-1)[:, :, None] @ values)[:, :, 0])
    return torch.stack(rows, 2).unflatten(2, (height, width))


def attention_of_transformers_4(self: Any, hidden_states: Tensor, output_attentions: bool = False) -> tuple[Tensor]:
    """NeighborhoodAttention.forward as the checkpoints were trained with it."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_attention_heads, self.attention_head_size)).permute(0, 3, 1, 2, 4)

    query, key, value = (heads(projection(hidden_states)) for projection in (self.query, self.key, self.value))
    query = query / self.attention_head_size**0.5
    context = natten(query, key, value, self.rpb, self.kernel_size, self.dilation)
    return (context.permute(0, 2, 3, 1, 4).flatten(3),)


@pytest.fixture
def with_natten(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' DiNAT as it was with NATTEN, in this test alone."""
    monkeypatch.setattr(stock, "requires_backends", lambda *arguments: None)
    monkeypatch.setattr(stock.NeighborhoodAttention, "forward", attention_of_transformers_4)


@pytest.mark.thorough
@pytest.mark.usefixtures("with_natten")
@pytest.mark.parametrize("size", [(48, 48), (33, 47), (8, 60), (5, 5)], ids=str)
def test_every_implementation_is_transformers_with_natten(size: tuple[int, int], tmp_path: Path) -> None:
    """Odd sizes, and images with so few cells that layers pad them with zeros after their norm; gradients of every parameter."""
    saved(tmp_path)
    theirs: Any = stock.DinatForImageClassification.from_pretrained(tmp_path).double().eval()
    ours: Any = hf_longattn.LongDinatForImageClassification.from_pretrained(tmp_path).double().eval()
    pixels, labels = torch.randn(2, 3, *size, dtype=torch.double), torch.tensor([1, 4])
    wanted = theirs(pixels, labels=labels, output_hidden_states=True)
    wanted.loss.backward()
    for implementation in ("longattn", "eager"):
        if implementation == "eager":
            ours.use_base_attention()
        ours.zero_grad()
        outputs = ours(pixels, labels=labels, output_hidden_states=True)
        outputs.loss.backward()
        torch.testing.assert_close(outputs.logits, wanted.logits)
        for state, expected in zip(outputs.hidden_states, wanted.hidden_states, strict=True):
            torch.testing.assert_close(state, expected)
        gradients = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name].grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.thorough
@pytest.mark.usefixtures("with_natten")
@every_cell(("kernel", "dilation"), [(3, 1), (3, 2), (5, 1), (5, 3), (7, 2)])
@every_cell("sizes", [(15, 15), (17, 19), (16, 29)], ids=str)
@torch.no_grad()
def test_one_layer(kernel: int, dilation: int, sizes: tuple[int, int]) -> None:
    """A whole layer at borders of every kind: sizes that the dilation divides and others."""
    torch.manual_seed(0)
    config = DinatConfig(**{**SIZES, "kernel_size": kernel, "depths": [1], "num_heads": [2], "dilations": [[dilation]]})
    config._attn_implementation = "eager"
    encoder = dinat_base.encoder_without_natten(config).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    theirs = stock.DinatEncoder(config).double().eval()
    theirs.load_state_dict(encoder.state_dict())
    cells = torch.randn(2, *sizes, 12, dtype=torch.double)
    torch.testing.assert_close(encoder(cells).last_hidden_state, theirs(cells).last_hidden_state)


def test_transformers_is_as_it_was() -> None:
    """Its own classes refuse to be built, and have their own attention."""
    before = stock.NeighborhoodAttention.forward, stock.requires_backends, stock.DinatModel.__init__
    hf_longattn.LongDinatModel(hf_longattn.LongDinatConfig(**SIZES))
    assert before == (stock.NeighborhoodAttention.forward, stock.requires_backends, stock.DinatModel.__init__)
    with pytest.raises(ImportError, match="natten"):
        DinatModel(DinatConfig(**SIZES))


def test_names_and_shapes_are_those_of_published_checkpoints() -> None:
    """Those of shi-labs/dinat-mini-in1k-224, from transformers' conversion of the original weights."""
    with torch.device("meta"):
        state = dinat_base.DinatForImageClassification(DinatConfig(num_labels=1000)).state_dict()
    expected: dict[str, tuple[int, ...]] = {"classifier": (1000, 512)}
    for number, (inside, outside) in enumerate([(3, 32), (32, 64)]):
        expected[f"dinat.embeddings.patch_embeddings.projection.{number}"] = (outside, inside, 3, 3)
    expected |= {"dinat.embeddings.norm": (64,), "dinat.layernorm": (512,)}
    biases: dict[str, tuple[int, ...]] = {}
    for stage, (depth, heads) in enumerate(zip((3, 4, 6, 5), (2, 4, 8, 16), strict=True)):
        width, level = 64 * 2**stage, f"dinat.encoder.levels.{stage}"
        for layer in range(depth):
            at = f"{level}.layers.{layer}"
            expected |= {f"{at}.attention.self.{name}": (width, width) for name in ("query", "key", "value")}
            expected |= {
                f"{at}.attention.output.dense": (width, width),
                f"{at}.layernorm_before": (width,),
                f"{at}.layernorm_after": (width,),
            }
            expected |= {f"{at}.intermediate.dense": (3 * width, width), f"{at}.output.dense": (width, 3 * width)}
            biases[f"{at}.attention.self.rpb"] = (heads, 13, 13)
        if stage < 3:
            expected[f"{level}.downsample.norm"] = (2 * width,)
            biases[f"{level}.downsample.reduction.weight"] = (2 * width, width, 3, 3)
    weights = {f"{name}.weight": shape for name, shape in expected.items()} | {
        f"{name}.bias": shape[:1] for name, shape in expected.items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == weights | biases


@pytest.mark.thorough
@pytest.mark.parametrize("head", ["DinatForImageClassification", "DinatModel", "DinatBackbone"])
def test_converted_verified_and_loaded(head: str, tmp_path: Path) -> None:
    source, long = tmp_path / "source", tmp_path / "long"
    saved(source, head, **({"out_indices": [1, 2, 3]} if head == "DinatBackbone" else {}))
    ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(source)
    report = convert_checkpoint(source, long, image_size="250x301")
    assert report.passed
    checks = {check.name: check for check in report.checks}
    for name in ("equal where the mechanism covers the input", "equal at the new size with the attention of the base", "at the new size"):
        assert checks[name].status == "passed"
        assert "by the definition of its attention in plain operations" in checks[name].detail
    assert report.plan["tensor_counts"]["kept"] == sum(report.plan["tensor_counts"].values())
    assert (report.plan["old_grid"], report.plan["new_grid"]) == ([56, 56], [63, 76])
    if head != "DinatBackbone":
        auto: Any = AutoModelForImageClassification if head.endswith("Classification") else AutoModel
        model = auto.from_pretrained(long)
        assert type(model) is getattr(hf_longattn, f"Long{head}")
        assert [layer.options.dilation for layer in layer_mechanisms(model)] == [(1,), (3,), (2,), (1,), (2,)]


def test_a_step_of_training(tmp_path: Path) -> None:
    saved(tmp_path)
    model = hf_longattn.LongDinatForImageClassification.from_pretrained(tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = [{"pixel_values": torch.randn(3, 40, 56), "labels": label} for label in range(4)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True, save_strategy="no",
        remove_unused_columns=False, disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not [name for name in unchanged if "key.bias" not in name]  # a key's bias alone changes no softmax


@torch.no_grad()
def test_weights_are_those_of_the_neighbours(tmp_path: Path) -> None:
    """Returned as those of other models, ``(B, H, N, N)``; of the base as NATTEN gave them, ``(B, H, height, width, k²)``."""
    saved(tmp_path)
    model = hf_longattn.LongDinatModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 48, 52)
    ours = model(pixels, output_attentions=True).attentions
    model.use_base_attention()
    theirs = model(pixels, output_attentions=True).attentions
    assert [tuple(weights.shape[-3:]) for weights in theirs] == [(12, 13, 9), (6, 7, 9), (6, 6, 9)]  # the last has 3 × 4 cells, and padding
    for dense, neighbours in zip(ours, theirs, strict=True):
        expected = neighbours.flatten(2, 3).sort(-1).values
        torch.testing.assert_close(dense.sort(-1).values[..., -9:], expected)
        assert not dense.sort(-1).values[..., :-9].any()


def test_another_mechanism(tmp_path: Path) -> None:
    """Chosen as in every family; the bias of distances that its table lacks is that of the furthest."""
    saved(tmp_path / "source")
    report = convert_checkpoint(tmp_path / "source", tmp_path / "long", mechanism="window2d", window=7)
    statuses = {check.name: check.status for check in report.checks}
    assert statuses["equal at the old size with the attention of the base"] == "passed"
    assert statuses["at the old size"] != "passed"
    config: Any = AutoConfig.from_pretrained(tmp_path / "long")
    assert all(config.long_attention.for_layer(layer)[0] == "window2d" for layer in range(5))


def test_refusals(tmp_path: Path) -> None:
    saved(tmp_path / "source")
    with pytest.raises(OptionError, match="adds relative positions"):
        hf_longattn.LongDinatModel.from_pretrained(tmp_path / "source", long_attention={"mechanism": "linear"})
    with pytest.raises(PositionError, match="this model has none; leave it out"):
        plan_conversion(tmp_path / "source", positions="tile")
    convert_checkpoint(tmp_path / "source", tmp_path / "long", verify=False)
    with pytest.raises(OptionError, match="on different grids, which are not audited"):
        hf_longattn.audit_reach(tmp_path / "long")
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.png")
    processor = ViTImageProcessor(size={"height": 224, "width": 224})
    model = AutoModel.from_pretrained(tmp_path / "long")
    with pytest.raises(BackendError, match="on different grids, which are not watched together"):
        diagnose(model, tmp_path / "photo.png", processor=processor)
