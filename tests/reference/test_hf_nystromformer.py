"""transformers' Nyströmformer and ours with the same weights: one layer's attention, and whole models with every head."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from hf_longattn import attend, build_mechanism
from hf_longattn.conversion import convert_checkpoint
from tests.cells import every_cell
from tests.grids import grid

LENGTH = 256
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification", "ForMultipleChoice")
QUICK = tuple((head, (32, LENGTH)[number % 2]) for number, head in enumerate(HEADS[:4]))
TOLERANCE = 1e-4


def config(**changes: Any) -> transformers.NystromformerConfig:
    values = {
        "vocab_size": 300,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": LENGTH,
        "segment_means_seq_len": LENGTH,
        "num_landmarks": 32,
        "conv_kernel_size": 33,
        "initializer_range": 0.1,
        "hidden_dropout_prob": 0.0,
    }
    return transformers.NystromformerConfig(**{**values, **changes})


@every_cell("padded", [False, True])
@every_cell("start", ["original", "exact"])
@every_cell("landmarks", [16, 64, LENGTH])
def test_self_attention(landmarks: int, start: str, padded: bool) -> None:
    """Padding is masked where transformers masks it, for the keys, and counted where it counts it: in segments and convolution."""
    torch.manual_seed(0)
    theirs = NystromformerSelfAttention(config(num_landmarks=landmarks)).eval()
    theirs.init_option = start
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours = build_mechanism(
        "nystrom", num_heads=4, head_dim=12, num_landmarks=landmarks, conv_kernel=33, inv_coeff_init_option=start,
        landmarks_over="input",
    )  # fmt: skip
    ours.load_state_dict({"conv": theirs.conv.weight.detach()[:, 0, :, 0].clone()})
    hidden = torch.randn(2, LENGTH, 48)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, 170:] = not padded
    mask = torch.zeros(2, 1, 1, LENGTH).masked_fill(~real[:, None, None], torch.finfo(torch.float32).min) if padded else None
    results = []
    for which in ("theirs", "ours"):
        leaf = hidden.clone().requires_grad_()
        if which == "theirs":
            out = theirs(leaf, mask)[0]
        else:
            q, k, v = (getattr(theirs, name)(leaf).unflatten(-1, (4, 12)).transpose(1, 2) for name in ("query", "key", "value"))
            out = attend(q, k, v, ours, padding_mask=real if padded else None).transpose(1, 2).flatten(2)
        out.sin().sum().backward()
        results.append((out, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= TOLERANCE
    gradients = theirs.conv.weight.grad[:, 0, :, 0], ours.conv.grad
    assert (gradients[0] - gradients[1]).abs().max() <= TOLERANCE * gradients[1].abs().max()


def labels(head: str, ids: Tensor) -> dict[str, Tensor]:
    return {
        "Model": {},
        "ForMaskedLM": {"labels": ids},
        "ForSequenceClassification": {"labels": torch.tensor([2, 0])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([30, 40]), "end_positions": torch.tensor([35, 90])},
        "ForTokenClassification": {"labels": ids % 3},
        "ForMultipleChoice": {"labels": torch.tensor([1])},
    }[head]


@pytest.mark.thorough
@pytest.mark.parametrize(("head", "landmarks"), grid(itertools.product(HEADS, (32, LENGTH)), lambda *cell: cell in QUICK))
def test_whole_model(head: str, landmarks: int, tmp_path: Path) -> None:
    """Saved by transformers, converted, loaded by an Auto class: the same call gives the same outputs and the same step."""
    torch.manual_seed(0)
    changes = {"num_labels": 3} if head in ("ForSequenceClassification", "ForTokenClassification") else {}
    theirs = getattr(transformers, f"Nystromformer{head}")(config(num_landmarks=landmarks, **changes)).train()
    theirs.save_pretrained(tmp_path / "source")
    assert convert_checkpoint(tmp_path / "source", tmp_path / "ours").passed
    ours = getattr(transformers, f"AutoModel{head.removeprefix('Model')}").from_pretrained(tmp_path / "ours").train()
    assert type(ours).__name__ == f"LongNystromformer{head}"
    ids = torch.randint(5, 300, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids[None] if head == "ForMultipleChoice" else ids}
    if landmarks == LENGTH and head != "ForMultipleChoice":  # without landmarks, transformers takes padding and any length
        inputs = {"input_ids": ids[:, :199], "attention_mask": (torch.arange(199) < torch.tensor([[199], [120]])).long()}
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    outputs = []
    for model in (theirs, ours):
        found = model(**inputs, **labels(head, ids[:, : real.shape[1]].contiguous()), output_hidden_states=True)
        loss = found.loss if "loss" in found else (found.last_hidden_state * real[..., None]).sin().mean()
        loss.backward()
        states = {f"hidden_states[{layer}]": state for layer, state in enumerate(found.hidden_states)}
        outputs.append({**{name: value for name, value in found.items() if isinstance(value, Tensor)}, **states})
    assert outputs[0].keys() == outputs[1].keys()
    for name, wanted in outputs[0].items():
        at = real if wanted.shape[:2] == real.shape else ...
        assert (wanted[at] - outputs[1][name][at]).abs().max() <= TOLERANCE, name
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = expected[name.replace("long_attention.conv", "conv.weight")].grad
        found = parameter.grad if wanted is None or parameter.grad is None else parameter.grad.view_as(wanted)
        assert (wanted is None) == (found is None), name
        assert wanted is None or (wanted - found).abs().max() <= TOLERANCE, name
