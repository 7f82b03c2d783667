"""Plain windows by transformers' FlashAttention, in whose place stands the mask for which its window sizes stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from hf_longattn.engines.dense import repeat_heads
from hf_longattn.errors import BackendError
from tests.cases import every_case

from .test_mixin import IDS, built, config_of, hidden

FLASH = "flash_attention_2"
FLASHES = (FLASH, "flash_attention_3", "kernels-community/flash-attn2")
MASK = torch.ones_like(IDS)
MASK[0, :9] = 0
WINDOWS: list[int | None] = []


def attend_by_sizes(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, sliding_window: int | None = None, is_causal: bool | None = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """``flash_attention_forward``: the queries are the last of the keys, the window ``sliding_window - 1`` keys to either side."""
    assert attention_mask is None or attention_mask.dim() == 2
    WINDOWS.append(sliding_window)
    causal = module.is_causal if is_causal is None else is_causal
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    q_len, kv_len = query.shape[2], key.shape[2]
    distance = torch.arange(kv_len - q_len, kv_len)[:, None] - torch.arange(kv_len)
    size = kv_len if sliding_window is None else sliding_window - 1
    seen = (distance <= size) & (distance >= (0 if causal else -size))
    seen = seen if attention_mask is None else seen & attention_mask[:, None, None].bool()
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen.expand(len(query), 1, q_len, kv_len), scale=scaling)
    return out.nan_to_num().transpose(1, 2), None


@pytest.fixture(autouse=True)
def flash() -> Iterator[None]:
    before = AttentionInterface._global_mapping[FLASH]
    AttentionInterface.register(FLASH, attend_by_sizes)
    WINDOWS.clear()
    yield
    AttentionInterface.register(FLASH, before)


def chosen(model: Any) -> Any:
    """As ``set_attn_implementation``, which looks for the package."""
    model.config._attn_implementation = FLASH
    return model


@pytest.mark.parametrize(
    ("base", "attention", "windows"),
    [
        ("bert", {"mechanism": "window", "window": 6}, {4}),
        ("bert", {"mechanism": "window", "window": 6, "layers": {1: {"mechanism": "full"}}}, {4, None}),
        ("gpt2", {"mechanism": "window", "window": 6}, {6}),
        ("llama", {"mechanism": "window", "window": 6, "layers": {0: {"mechanism": "window", "window": 9}}}, {6, 9}),
        ("mistral", {"mechanism": "window", "window": 12, "layers": {0: {"mechanism": "full"}}}, {12, None}),
    ],
)
def test_flash_attention_is_told_the_window_of_each_layer(base: str, attention: dict[str, Any], windows: set[int | None]) -> None:
    model = built(base, long_attention=attention)
    expected = hidden(model)
    padded = MASK[..., None] * model(IDS, attention_mask=MASK).last_hidden_state
    assert model.config._attn_implementation == "longattn"
    chosen(model)
    assert model.config._attn_implementation == FLASH
    torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(MASK[..., None] * model(IDS, attention_mask=MASK).last_hidden_state, padded, atol=1e-4, rtol=0)
    assert set(WINDOWS) == windows
    model.set_attn_implementation("longattn")
    assert torch.equal(hidden(model), expected)
    model.config._base_attention = True  # model.use_base_attention(), where the package is installed
    WINDOWS.clear()
    other = hidden(chosen(model))
    assert set(WINDOWS) == {model.config.sliding_window if base == "mistral" else None}
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("base", ["gpt2", "mistral"])
def test_generation_by_flash_attention_keeps_what_the_widest_layer_sees(base: str) -> None:
    """Mistral's own window, by which its caches would be cropped, is narrower."""
    from hf_longattn.families import FAMILIES

    torch.manual_seed(0)
    head = {"gpt2": "LongGPT2LMHeadModel", "mistral": "LongMistralForCausalLM"}[base]
    changes = {"sliding_window": 8} if base == "mistral" else {}
    attention = {"mechanism": "window", "window": 20, "layers": {1: {"mechanism": "full"}}}
    model = FAMILIES[base].model_class(head)(config_of(base, long_attention=attention, **changes)).eval()
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None, "attention_mask": MASK}
    expected = model.generate(IDS, **arguments)
    assert torch.equal(chosen(model).generate(IDS, **arguments), expected)
    assert 20 in WINDOWS


@every_case(
    ("base", "attention"),
    [
        ("bert", {"mechanism": "longformer", "window": 6}),
        ("bert", {"mechanism": "window", "window": 6, "num_sinks": 2}),
        ("bert", {"mechanism": "window", "window": 6, "relative": "alibi"}),
        ("bert", {"mechanism": "window", "left": 3, "right": 1}),
        ("bert", {"mechanism": "window", "window": 6, "dilation": 2}),
        ("t5", {"mechanism": "window", "window": 6}),
        ("albert", {"mechanism": "window", "window": 6}),
        ("bart", {"mechanism": "window", "window": 6}),
    ],
)
def test_flash_attention_is_refused_for_more_than_plain_windows(base: str, attention: dict[str, Any]) -> None:
    for implementation in FLASHES:
        with pytest.raises(BackendError, match=f"'{implementation}' does not compute the mechanism .*use_base_attention"):
            config_of(base, long_attention=attention, attn_implementation=implementation)


def test_mechanisms_changed_under_flash_attention_are_checked_again() -> None:
    model = chosen(built("bert", long_attention={"mechanism": "window", "window": 6}))
    model.config.long_attention = {"mechanism": "window", "window": 8}
    with pytest.raises(BackendError, match="does not compute the mechanism 'longformer'"):
        model.config.long_attention = {"mechanism": "longformer", "window": 6}


def test_flash_attention_of_a_stock_model_is_left_as_it_is() -> None:
    from transformers import BertConfig, BertModel

    chosen(built("bert", long_attention={"mechanism": "window", "window": 6}))
    plain = BertModel(BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)).eval()
    plain.config._attn_implementation = FLASH
    plain(IDS)
    assert WINDOWS == [None]
