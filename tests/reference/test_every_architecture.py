"""Stock models with ``attn_implementation="longattn"`` compute what eager attention computes, or refuse it, in every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from scripts.dev.tools.every_config import model_class, model_types, small_config
from tests.cases import Cases, every_case
from tests.reference.every_architecture import compare, float64_throughout, parts_of, stored

WINDOWED = ("gemma2", "gemma3_text", "gemma3", "gpt_oss", "llama4_text", "mistral", "modernbert", "openai_privacy_filter", "qwen2")
OTHERS = ("bart", "bert", "bloom", "bridgetower", "deepseek_v32", "informer", "paligemma", "t5", "vit", "wav2vec2", "whisper")
REFUSED = ("bridgetower", "deepseek_v32")
"""Of these, the model types that are refused."""
SLICES = 8
"""Number of tests among which the model types are divided."""
SAME_VERSION = transformers.__version__ == stored()["transformers"]


def check(model_type: str) -> dict[str, Any]:
    """The entry of a model type, which differs in nothing and is the stored one."""
    entry = compare(model_type)
    assert "DIFFERS" not in entry, entry["DIFFERS"]
    if SAME_VERSION:
        expected = stored()["architectures"][model_type]
        if "in" in expected:
            assert "not built" in entry
            assert model_type in parts_of(small_config(expected["in"]))
        else:
            assert entry.keys() == expected.keys()
            assert (entry.get("equal"), entry.get("refused")) == (expected.get("equal"), expected.get("refused"))
    return entry


@every_case("model_type", [name for name in WINDOWED + OTHERS if name in model_types()])
def test_model_of_each_kind_is_equal_under_its_stock_class(model_type: str) -> None:
    with float64_throughout():
        entry = check(model_type)
    assert ("window" in entry.get("equal", "").split("; ")) == (model_type in WINDOWED)
    assert ("refused" in entry) == (model_type in REFUSED)


def test_attention_that_ignores_windows_differs() -> None:
    def blind(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **{**kwargs, "is_causal": True})

    AttentionInterface.register("blind", blind)
    AttentionMaskInterface.register("blind", sdpa_mask)
    with float64_throughout():
        assert {*compare("gemma3_text", "blind")["DIFFERS"]} >= {"forward", "padded left", "documents", "decoded"}
        assert {*compare("llama", "blind")["DIFFERS"]} >= {"padded left", "documents"}


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(SLICES))
def test_every_architecture_is_equal_or_refused(number: int) -> None:
    names = [name for name in model_types() if model_class(name) is not None]
    if SAME_VERSION:
        assert {*names} == stored()["architectures"].keys()
    with float64_throughout(), Cases() as cases:
        for name in names[number::SLICES]:
            with cases(name):
                check(name)
