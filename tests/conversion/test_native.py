"""Native twins: a stock checkpoint that computes what the long model does, or one sentence that names the layer and the reason."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from hf_longattn import convert_checkpoint, export_native, plan_conversion
from hf_longattn.cli.app import main
from hf_longattn.conversion.twins import LongModel, choose_twin
from hf_longattn.errors import DestinationExistsError, ExportError, LongAttentionError
from hf_longattn.families import FAMILIES
from hf_longattn.files import FORMAT_FIELD as FIELD
from hf_longattn.mechanisms import list_mechanisms
from scripts.dev.tools.small_models import TEXT_FAMILIES, language_model
from tests.cases import every_case
from tests.native_cases import long_attention, long_values, save_long
from tests.shared_code import code_of_family

WINDOW = {"mechanism": "window", "window": 6}
LAST = {"layers": "0=full;1=window:window=6"}
LONGFORMER = {"mechanism": "longformer", "window": 8, "global_tokens": []}
CLS = {**LONGFORMER, "global_tokens": [0]}
SEPARATE = {**LONGFORMER, "separate_global": True}
QUESTION = {**LONGFORMER, "global_first_segment": True, "separator_token_id": 2}
FULL = {"mechanism": "full"}
BIG_BIRD = long_attention("bigbird")
QUICK: dict[str, tuple[str, Any, str | None, dict[str, Any], str]] = {
    "bert": ("bert", FULL, None, {}, "BertForMaskedLM"),
    "llama, one window": ("llama", WINDOW, None, {}, "MistralForCausalLM"),
    "llama, full": ("llama", FULL, None, {}, "MistralForCausalLM"),
    "roberta, longformer": ("roberta", SEPARATE, None, {}, "LongformerForMaskedLM"),
    "roberta, questions": ("roberta", QUESTION, "RobertaForQuestionAnswering", {}, "LongformerForQuestionAnswering"),
    "bert, bigbird": ("bert", BIG_BIRD, None, {}, "BigBirdForMaskedLM"),
    "bert, classes": ("bert", CLS, "BertForSequenceClassification", {}, "LongformerForSequenceClassification"),
}
SLOW: dict[str, tuple[str, Any, str | None, dict[str, Any], str]] = {
    "roberta, full": ("roberta", FULL, "RobertaForSequenceClassification", {}, "RobertaForSequenceClassification"),
    "electra": ("electra", FULL, None, {"embedding_size": 32}, "ElectraForMaskedLM"),
    "distilbert": ("distilbert", FULL, None, {}, "DistilBertForMaskedLM"),
    "mistral, a classifier": ("mistral", WINDOW, "MistralForTokenClassification", {}, "MistralForTokenClassification"),
    "camembert, tied by another name": ("camembert", BIG_BIRD, None, {}, "BigBirdForMaskedLM"),
    "roberta, window": ("roberta", WINDOW, "RobertaModel", {}, "LongformerModel"),
    "big_bird": ("big_bird", BIG_BIRD, "BigBirdForSequenceClassification", {}, "BigBirdForSequenceClassification"),
}
CASES = {**QUICK, **SLOW}


@every_case("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], of=4)
def test_native_twin_computes_the_same_and_can_be_adopted_again(case: str, tmp_path: Path) -> None:
    base, attention, head, changes, expected = CASES[case]
    save_long(tmp_path / "long", base, attention, head, **changes)
    report = export_native(tmp_path / "long", tmp_path / "twin")
    assert report.plan["class"] == expected
    checks = {check.name: check for check in report.checks}
    assert checks["tensors"].status == "passed"
    assert all(check.status in ("passed", "skipped", "measured") for check in report.checks)
    assert any(name.startswith("equal to the long model at") for name in checks)
    stock = getattr(transformers, expected)
    generates = stock.can_generate() and not report.plan["warnings"]
    assert any(name.startswith("generates the same") for name in checks) >= generates
    written = json.loads((tmp_path / "twin" / "config.json").read_text())
    assert written["architectures"] == [expected]
    assert written["model_type"] == stock.config_class.model_type
    assert not {FIELD, "long_attention", "base_windows", "position_extension", "extended_from"} & written.keys()
    # back: adopted as any stock checkpoint is, the same outputs are required of it, and the twin of that is this one
    convert_checkpoint(tmp_path / "twin", tmp_path / "back", **_kept(written))
    again = export_native(tmp_path / "back", tmp_path / "again", verify=False)
    assert again.plan["class"] == expected
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("twin", "again"))
    rows = {name: min(len(one), len(second[name])) for name, one in first.items() if "position" in name}
    assert first.keys() == second.keys()
    assert all(torch.equal(one[: rows.get(name)], second[name][: rows.get(name)]) for name, one in first.items())


def _kept(written: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a conversion that keeps the attention of a plain base; adopted long models keep theirs."""
    if written["model_type"] in ("longformer", "big_bird") or written.get("sliding_window"):
        return {}
    return {"mechanism": "full"}


REFUSED: dict[str, tuple[str, Any, str | None, dict[str, Any], str]] = {
    "mixed": ("llama", {"layers": "0=window:window=6;1=strided"}, None, {}, "Layer 1 has 'strided'"),
    "two widths": ("llama", {"layers": "0=window:window=6;1=window:window=8"}, None, {}, "Layer 1 has another window than layer 0"),
    "some layers": ("mistral", LAST, None, {}, "Layer 1 has another window than layer 0"),
    "biases": ("llama", WINDOW, None, {"attention_bias": True}, r"Layer 0 has biases \(attention_bias=True\), and Mistral has none"),
    "sinks": ("llama", {"mechanism": "window", "num_sinks": 4}, None, {}, "Layer 0 has 'window' with num_sinks=4"),
    "dilation": ("llama", {"mechanism": "window", "dilation": 2}, None, {}, r"Layer 0 has 'window' with dilation=\[2\]"),
    "relative": ("llama", {"mechanism": "full", "relative": "alibi"}, None, {}, "Layer 0 .*alibi"),
    "another base": ("gpt2", WINDOW, None, {}, "A LongGPT2LMHeadModel has none; BERT, RoBERTa and their kin"),
    "another mechanism": ("bert", {"mechanism": "linear"}, None, {}, "Layer 0 has 'linear', and no stock architecture has it"),
    "globals": ("roberta", CLS, None, {}, "Layer 0 makes position 0 global, while a LongformerForMaskedLM by itself makes no token global"),
    "no globals": (
        "bert", WINDOW, "BertForSequenceClassification", {},
        "Layer 0 makes no token global, while a Longformer.* by itself makes position 0 global",
    ),
    "short texts": ("bert", {**LONGFORMER, "exact_length": 8}, None, {}, "No stock architecture has exact_length=8; convert with --option"),
    "activation": ("bert", LONGFORMER, None, {"hidden_act": "relu"}, "activation 'relu' differs from that of Longformer"),
    "asymmetric window": ("roberta", {**WINDOW, "left": 5}, None, {}, "Layer 0 has 'window' with window=6, left=5, and every layer of"),
    "window of one": ("roberta", {**WINDOW, "window": 1}, None, {}, "Layer 0 has a window of one token"),
    "full in Longformer": ("roberta", {"layers": "0=full;1=window:window=6"}, None, {}, "Layer 0 has 'full'"),
    "seeded blocks": ("bert", {"mechanism": "bigbird"}, None, {}, "random_pattern=seeded"),
    "blocks of the text": ("bert", {**BIG_BIRD, "blocks_over": "text"}, None, {}, "blocks_over=text"),
    "another head": ("bert", BIG_BIRD, "BertForQuestionAnswering", {}, "head of a BertForQuestionAnswering differs"),
}  # fmt: skip


@every_case("case", REFUSED)
def test_native_twin_is_refused_for_what_no_stock_architecture_computes(case: str) -> None:
    base, attention, head, changes, says = REFUSED[case]
    family = FAMILIES[base]
    config = family.config_class(**{**long_values(base), "long_attention": attention, **changes})
    choice = choose_twin(LongModel(config, family.model_classes[head or language_model(base)], family))
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(choice.reason)
    assert choice.twin is None
    assert choice.reason.endswith(".")
    assert ". " not in choice.reason, "one sentence"


@every_case("base", TEXT_FAMILIES, of=9, code=code_of_family)
def test_every_base_and_mechanism_has_a_native_twin_or_a_reason(base: str) -> None:
    family = FAMILIES[base]
    for mechanism in list_mechanisms(grid=False):
        values = {**long_values(base), "long_attention": long_attention(mechanism)}
        try:
            config = family.config_class(**values)
        except LongAttentionError:  # the mechanism has no form for this base
            continue
        model = LongModel(config, family.model_classes[language_model(base)], family)
        choice = choose_twin(model)
        if choice.twin is None:
            assert choice.reason.endswith(".")
        else:
            choice.twin.skeleton(model)


def test_native_twin_can_leave_global_tokens_to_the_caller(tmp_path: Path) -> None:
    save_long(tmp_path / "long", "roberta", {**CLS, "separate_global": True})
    with pytest.raises(ExportError, match=r"has no native twin: Layer 0 makes position 0 global.*--global-attention-mask"):
        export_native(tmp_path / "long", tmp_path / "twin")
    assert not (tmp_path / "twin").exists()
    report = export_native(tmp_path / "long", tmp_path / "twin", global_attention_mask=True)
    assert report.plan["warnings"] == ["Every call must be given the global_attention_mask."]
    assert {check.name for check in report.checks if "global tokens" in check.name}


@pytest.mark.parametrize("name", [pytest.param("RobertaForMaskedLM", marks=pytest.mark.slow), "RobertaForQuestionAnswering"])
def test_native_refusal_for_global_tokens_names_options_that_make_twin(name: str, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("RobertaForMaskedLM", tokenizer="roberta")
    getattr(transformers, name).from_pretrained(source).save_pretrained(source)
    arguments = ["convert", str(source), str(tmp_path / "long"), "--mechanism", "longformer"]
    arguments += ["--option", "window=8", "--option", "exact_length=0", "--max-length", "100", "--no-verify", "--overwrite"]
    with pytest.raises(SystemExit):
        main(arguments)
    with pytest.raises(ExportError) as refused:
        export_native(tmp_path / "long", tmp_path / "twin", verify=False)
    advised = re.search(r"convert with (--option .+), or export", str(refused.value))
    assert advised is not None, str(refused.value)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *advised[1].split()])
    assert ended.value.code == 0
    assert export_native(tmp_path / "long", tmp_path / "twin").passed


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == "hf_longattn":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("long documents " * 20, return_tensors="pt").input_ids[:, :50]
with torch.no_grad():
    torch.save(model(ids).logits, sys.argv[2])
assert "hf_longattn" not in sys.modules
print(type(model).__name__, tokenizer.model_max_length)
"""


@pytest.mark.slow
def test_convert_native_and_load_where_hf_longattn_is_not_installed(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM", tokenizer="gpt2")
    transformers.GenerationConfig(max_length=64, temperature=0.5, do_sample=True).save_pretrained(source)
    report = convert_checkpoint(source, tmp_path / "twin", mechanism="window", window=16, max_length=128, native=True)
    assert report.plan["class"] == "MistralForCausalLM"
    names = [check.name for check in report.checks]
    assert {"equal where the mechanism covers the input", "generates the same after 24 tokens"} <= set(names), (
        "of the conversion and of the twin"
    )
    assert json.loads((tmp_path / "twin" / "native_report.json").read_text())["plan"]["class"] == "MistralForCausalLM"
    assert json.loads((tmp_path / "twin" / "generation_config.json").read_text())["temperature"] == 0.5
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=128, verify=False)
    run = subprocess.run(
        [sys.executable, "-c", BLOCKER, str(tmp_path / "twin"), str(tmp_path / "logits")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["MistralForCausalLM", "128"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long")
    ids = AutoTokenizer.from_pretrained(source)("long documents " * 20, return_tensors="pt").input_ids[:, :50]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, torch.load(tmp_path / "logits"), atol=1e-4, rtol=0)


def test_convert_native_refuses_before_it_writes(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM")
    with pytest.raises(ExportError, match="The result would have no native twin: Layer 0 has 'lsh'"):
        convert_checkpoint(source, tmp_path / "twin", mechanism="lsh", native=True)
    assert not (tmp_path / "twin").exists()
    (tmp_path / "twin").mkdir()
    with pytest.raises(DestinationExistsError):
        convert_checkpoint(source, tmp_path / "twin", mechanism="window", native=True)
    with pytest.raises(LongAttentionError, match="--native writes a stock architecture, to which --remote-code does not apply"):
        convert_checkpoint(source, tmp_path / "other", mechanism="window", native=True, remote_code=True)


def test_plan_says_whether_there_is_a_native_twin(checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    source = checkpoint("LlamaForCausalLM")
    twin = plan_conversion(source, mechanism="window", window=8, max_length=128).to_dict()["native_twin"]
    assert twin == {"class": "MistralForCausalLM", "model_type": "mistral"}
    assert "Layer 0 has 'strided'" in plan_conversion(source, mechanism="strided").to_dict()["native_twin"]["reason"]
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(source), "--mechanism", "window", "--max-length", "128"])
    assert ended.value.code == 0
    assert "MistralForCausalLM of transformers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "LONG", "OUT", "--format", "native"], "Layer 0 has 'strided'"),
        (["export", "SHORT", "OUT", "--format", "native"], "is a short checkpoint"),
        (["export", "LONG", "OUT", "--format", "tensorrt"], "Unknown format 'tensorrt'; expected onnx, torch, native."),
    ],
)
def test_native_export_refuses_bad_input(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_long(tmp_path / "LONG", "llama", {"mechanism": "strided"})
    transformers.LlamaForCausalLM(AutoConfig.for_model("llama", **long_values("llama"))).save_pretrained(tmp_path / "SHORT")
    paths = [str(tmp_path / one) if one.isupper() else one for one in arguments]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(paths)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "OUT").exists()
