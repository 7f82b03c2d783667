"""`longformer` and `window` equal the plain base under the equivalent dense four-dimensional mask, in outputs and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.cases import every_case
from tests.reference.small_models import ENCODERS, padding, pair, plain_config, tokens

LENGTH, WINDOW = 400, 64


def dense_mask(window: int, mask: Tensor, is_global: Tensor) -> Tensor:
    """(B, 1, N, N) additive: what Longformer's definition lets query i see of key j."""
    position = torch.arange(mask.shape[1])
    near = (position[:, None] - position[None]).abs() <= window // 2
    seen = (near[None] | is_global[:, :, None] | is_global[:, None, :]) & mask.bool()[:, None, :]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


@every_case("left", [False, True], ids=["right-padded", "left-padded"], pairs=True)
@every_case("globals_", ["some", "none"])
@every_case("base", ENCODERS)
def test_longformer_models_equal_their_base_under_the_dense_mask(base: str, globals_: str, left: bool) -> None:
    head = {"bert": "BertForTokenClassification", "roberta": "RobertaForTokenClassification"}[base]
    plain, longer = pair(base, head, {"mechanism": "longformer", "window": WINDOW, "global_tokens": ()}, num_labels=7)
    mask = padding(3, LENGTH, left=left)
    ids = torch.where(mask.bool(), tokens(3, LENGTH), plain_config(base).pad_token_id)
    is_global = torch.zeros(3, LENGTH, dtype=torch.bool)
    if globals_ == "some":
        for row, chosen in enumerate(([0, 1, 250], [0], [5, 77, 78, 265])):
            is_global[row, [LENGTH - 1 - c for c in chosen] if left else chosen] = True
    positions = (mask.cumsum(1) - 1).clamp(min=0) if base == "bert" else None
    labels = torch.where(mask.bool(), tokens(3, LENGTH) % 7, -100)

    expected = plain(ids, attention_mask=dense_mask(WINDOW, mask, is_global), position_ids=positions, labels=labels)
    found = longer(ids, attention_mask=mask, global_attention_mask=is_global.long(), position_ids=positions, labels=labels)
    real = mask.bool()
    assert (expected.logits - found.logits)[real].abs().max() < 1e-4
    expected.loss.backward()
    found.loss.backward()
    gradients = dict(longer.named_parameters())
    for name, parameter in plain.named_parameters():
        assert (parameter.grad - gradients[name].grad).abs().max() < 1e-4, name


def test_position_zero_is_global_in_longformer_by_default() -> None:
    plain, longer = pair("bert", None, {"mechanism": "longformer", "window": WINDOW})
    mask = padding(3, LENGTH)
    is_global = torch.zeros(3, LENGTH, dtype=torch.bool)
    is_global[:, 0] = True
    ids = tokens(3, LENGTH)
    with torch.no_grad():
        expected = plain(ids, attention_mask=dense_mask(WINDOW, mask, is_global)).last_hidden_state
        found = longer(ids, attention_mask=mask).last_hidden_state
    assert (expected - found)[mask.bool()].abs().max() < 1e-4


def test_layers_with_windows_of_different_widths_equal_their_dense_masks() -> None:
    windows = [16, 64, 200]
    layers = {layer: {"window": window} for layer, window in enumerate(windows)}
    plain, longer = pair("bert", None, {"mechanism": "window", "window": 2, "layers": layers})
    mask, ids = padding(2, LENGTH), tokens(2, LENGTH)
    none = torch.zeros(2, LENGTH, dtype=torch.bool)
    with torch.no_grad():
        hidden = plain.embeddings(ids)
        for window, layer in zip(windows, plain.encoder.layer, strict=True):
            hidden = layer(hidden, dense_mask(window, mask, none))
        found = longer(ids, attention_mask=mask).last_hidden_state
    assert (hidden - found)[mask.bool()].abs().max() < 1e-4
