"""Every architecture of transformers under enable_long_attention, and transformers' own model tests on Long
families."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from scripts.dev.tools import run_transformers_tests as suite
from scripts.dev.tools.every_config import model_class, model_types, small_config
from scripts.dev.tools.small_models import OF_EACH_KIND
from tests.cases import Cases, every_case
from tests.fresh_processes import run_fresh
from tests.reference.every_architecture import compare, float64_throughout, parts_of, stored

WINDOWED = (
    "gemma2",
    "gemma3_text",
    "gemma3",
    "gpt_oss",
    "llama4_text",
    "mistral",
    "modernbert",
    "openai_privacy_filter",
    "qwen2",
)
OTHERS = (
    "bart",
    "bert",
    "bloom",
    "bridgetower",
    "deepseek_v32",
    "informer",
    "paligemma",
    "t5",
    "vit",
    "wav2vec2",
    "whisper",
)
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
            assert (entry.get("unpadded") == "equal") == (expected.get("unpadded") == "equal")
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


QUICK_FAMILIES = ["llama", "bart"]
QUICK = (
    "test_attention_outputs",
    "test_can_init_all_missing_weights",
    "test_config",
    "test_correct_missing_keys",
    "test_forward_signature",
    "test_gradient_checkpointing",
    "test_hidden_states_output",
    "test_inputs_embeds",
    "test_load_save_without_tied_weights",
    "test_resize_",
    "test_retain_grad",
    "test_save_load_keys",
    "test_tie",
)
"""Beginnings of the names of the tests that `make test` runs; the whole suite takes minutes for each family and is a
slow test. That outputs as a tuple are those by name, that a batch gives what its rows give, saving and training have
tests of ours in tests/modes and tests/modeling."""


def result_of(
    families: list[str], folder_for_report: Path, only: tuple[str, ...] = (), with_base: bool = False
) -> dict[str, dict]:
    try:
        folder = suite.unpacked_sdist(suite.CACHE, transformers.__version__)
    except subprocess.CalledProcessError:
        pytest.skip(
            f"the sdist of transformers {transformers.__version__} is not in {suite.CACHE} and cannot be downloaded"
        )
    report = folder_for_report / "report.xml"
    arguments, environment = suite.pytest_call(folder, suite.prepare(folder), families, with_base, report, only)
    run_fresh(*arguments, cwd=folder, env=environment, timeout=3000)
    return suite.table(report)


def test_long_llama_and_bart_pass_some_of_the_model_tests_of_transformers(tmp_path: Path) -> None:
    """In one process."""
    result = result_of(QUICK_FAMILIES, tmp_path, QUICK)
    assert {family: found["failures"] for family, found in result.items()} == {
        f"long_{family}": [] for family in QUICK_FAMILIES
    }
    assert all(found["passed"] >= 10 for found in result.values()), result


@pytest.mark.slow
@pytest.mark.parametrize("family", OF_EACH_KIND)
def test_long_families_pass_the_model_tests_of_transformers(family: str, tmp_path: Path) -> None:
    """Nothing fails, and what passes on the base passes, except for what is skipped with a reason."""
    result = result_of([family], tmp_path, with_base=True)
    reasons = [
        skip.get("message", "") for skip in ElementTree.parse(tmp_path / "report.xml").getroot().iter("skipped")
    ]
    ours = result[f"long_{family}"]
    assert ours["failures"] == []
    assert ours["passed"] + sum(reason.startswith("skip list") for reason in reasons) >= result[family]["passed"] > 50
