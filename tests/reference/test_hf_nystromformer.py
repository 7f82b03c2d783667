"""transformers' Nyströmformer and ours with the same weights: one layer's attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from hf_longattn import attend, build_mechanism
from tests.cases import every_case

LENGTH = 256
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


@every_case("start", ["original", "exact"])
@every_case("landmarks", [16, 64, LENGTH])
def test_nystrom_equals_the_self_attention_of_nystromformer(landmarks: int, start: str) -> None:
    torch.manual_seed(0)
    theirs = NystromformerSelfAttention(config(num_landmarks=landmarks)).eval()
    theirs.init_option = start
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours = build_mechanism("nystrom", num_heads=4, head_dim=12, num_landmarks=landmarks, conv_kernel=33, inv_coeff_init_option=start)
    ours.load_state_dict({"conv": theirs.conv.weight.detach()[:, 0, :, 0].clone()})
    hidden = torch.randn(2, LENGTH, 48)
    results = []
    for which in ("theirs", "ours"):
        leaf = hidden.clone().requires_grad_()
        if which == "theirs":
            out = theirs(leaf)[0]
        else:
            q, k, v = (getattr(theirs, name)(leaf).unflatten(-1, (4, 12)).transpose(1, 2) for name in ("query", "key", "value"))
            out = attend(q, k, v, ours).transpose(1, 2).flatten(2)
        out.sin().sum().backward()
        results.append((out, leaf.grad))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= TOLERANCE
    gradients = theirs.conv.weight.grad[:, 0, :, 0], ours.conv.grad
    assert (gradients[0] - gradients[1]).abs().max() <= TOLERANCE * gradients[1].abs().max()
