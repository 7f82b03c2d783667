"""Stock checkpoints compute what the long model does. Where there is none, one sentence names the layer and the
reason."""

from __future__ import annotations

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

from hf_longattn import convert_checkpoint, export_native
from hf_longattn.cli.app import main
from hf_longattn.conversion.native import LongformerStock, choose_stock
from hf_longattn.errors import CheckpointError, LongAttentionError
from hf_longattn.families import FAMILIES
from hf_longattn.files import FORMAT_FIELD
from hf_longattn.mechanisms import list_mechanisms
from scripts.dev.tools.small_models import TEXT_FAMILIES, language_model
from tests.cases import every_case
from tests.saved import change_json, read_json
from tests.shared_code import code_of_family
from tests.stock_cases import long_attention, long_values, save_long

FULL, WINDOW = {"mechanism": "full"}, {"mechanism": "window", "window": 6}
LONGFORMER = {"mechanism": "longformer", "window": 8, "global_tokens": []}
FIRST = {**LONGFORMER, "global_tokens": [0]}
SEPARATE = {**LONGFORMER, "separate_global": True}
QUESTION = {**LONGFORMER, "global_first_segment": True, "separator_token_id": 2}
BLOCKS = long_attention("bigbird")

Case = tuple[str, Any, str, str]
"""Base, attention, head, and the beginning of the stock class's name."""
CASES: dict[str, Case] = {
    "bert, full": ("bert", FULL, "ForMaskedLM", "Bert"),
    "roberta, full": ("roberta", FULL, "ForSequenceClassification", "Roberta"),
    "electra, full": ("electra", FULL, "ForMaskedLM", "Electra"),
    "distilbert, full": ("distilbert", FULL, "ForMaskedLM", "DistilBert"),
    "llama, full": ("llama", FULL, "ForCausalLM", "Mistral"),
    "llama, one window": ("llama", WINDOW, "ForCausalLM", "Mistral"),
    "llama, questions": ("llama", WINDOW, "ForQuestionAnswering", "Mistral"),
    "mistral, a classifier": ("mistral", WINDOW, "ForTokenClassification", "Mistral"),
    "roberta, window": ("roberta", WINDOW, "Model", "Longformer"),
    "roberta, longformer": ("roberta", SEPARATE, "ForMaskedLM", "Longformer"),
    "roberta, questions": ("roberta", QUESTION, "ForQuestionAnswering", "Longformer"),
    "bert, tokens": ("bert", LONGFORMER, "ForTokenClassification", "Longformer"),
    "bert, classes": ("bert", FIRST, "ForSequenceClassification", "Longformer"),
    "bert, bigbird": ("bert", BLOCKS, "ForMaskedLM", "BigBird"),
    "camembert, tied by another name": ("camembert", BLOCKS, "ForMaskedLM", "BigBird"),
    "big_bird": ("big_bird", BLOCKS, "ForSequenceClassification", "BigBird"),
}


def long_class(base: str, head: str) -> str:
    """The base's class with a head."""
    return f"{FAMILIES[base].base_model_name.removesuffix('Model')}{head}"


@every_case("case", CASES, of=3)
def test_stock_checkpoint_computes_the_same_and_can_be_adopted_again(case: str, tmp_path: Path) -> None:
    base, attention, head, stem = CASES[case]
    save_long(tmp_path / "long", base, attention, long_class(base, head))
    report = export_native(tmp_path / "long", tmp_path / "stock")
    name = f"{stem}{head}"
    assert report.plan["class"] == name
    assert {check.status for check in report.checks} == {"passed"}
    lengths = [
        check.values["length"] for check in report.checks if check.name.startswith("equal to the long model at")
    ]
    assert {*lengths} == {24, 64}
    assert len(lengths) == (4 if stem == "Longformer" and "window" not in case else 2), (
        "also with a mask, where both take one"
    )
    stock = getattr(transformers, name)
    assert any(check.name.startswith("generates the same") for check in report.checks) == stock.can_generate()
    written = read_json(tmp_path / "stock")
    assert (written["architectures"], written["model_type"]) == ([name], stock.config_class.model_type)
    assert not {FORMAT_FIELD, "long_attention", "base_windows", "position_extension", "extended_from"} & written.keys()
    # back: adopted as any stock checkpoint is, the same outputs are required of it, and its stock checkpoint is this
    # one
    keeps = written["model_type"] in ("longformer", "big_bird") or written.get("sliding_window")
    convert_checkpoint(tmp_path / "stock", tmp_path / "back", **({} if keeps else FULL))
    assert export_native(tmp_path / "back", tmp_path / "again", verify=False).plan["class"] == name
    first, second = (load_file(tmp_path / folder / "model.safetensors") for folder in ("stock", "again"))
    assert first.keys() == second.keys()
    rows = {key: min(len(tensor), len(second[key])) for key, tensor in first.items() if "position" in key}
    assert all(torch.equal(tensor[: rows.get(key)], second[key][: rows.get(key)]) for key, tensor in first.items())


MASKED = "ForMaskedLM"
REFUSED: dict[str, tuple[str, Any, str, dict[str, Any], str]] = {
    "mixed": ("llama", {"layers": "0=window:window=6;1=strided"}, "ForCausalLM", {}, "Layer 1 has 'strided'"),
    "two widths": (
        "llama",
        {"layers": "0=window:window=6;1=window:window=8"},
        "ForCausalLM",
        {},
        "Layer 1 has 'window' with window=8, and every layer of a MistralForCausalLM has full attention or the same "
        "window",
    ),
    "some layers": (
        "mistral",
        {"layers": "0=full;1=window:window=6"},
        "ForCausalLM",
        {},
        "Layer 1 has 'window' with window=6",
    ),
    "biases": (
        "llama",
        WINDOW,
        "ForCausalLM",
        {"attention_bias": True},
        "Layer 0 .* a MistralForCausalLM has .*no biases",
    ),
    "sinks": (
        "llama",
        {"mechanism": "window", "num_sinks": 4},
        "ForCausalLM",
        {},
        "Layer 0 has 'window' with num_sinks=4",
    ),
    "dilation": (
        "llama",
        {"mechanism": "window", "dilation": 2},
        "ForCausalLM",
        {},
        r"Layer 0 has 'window' with "
        r"dilation=\[2\]",
    ),
    "relative": (
        "llama",
        {"mechanism": "full", "relative": "alibi"},
        "ForCausalLM",
        {},
        "Layer 0 has 'full' with relative=alibi",
    ),
    "another base": ("gpt2", WINDOW, "LMHeadModel", {}, "A LongGPT2LMHeadModel has none; BERT, RoBERTa and their kin"),
    "another mechanism": (
        "bert",
        {"mechanism": "linear"},
        MASKED,
        {},
        "Layer 0 has 'linear', and every layer of a BertForM",
    ),
    "globals": (
        "roberta",
        FIRST,
        MASKED,
        {},
        "Layer 0 has 'longformer' .* a LongformerForMasked.* its head's global tokens",
    ),
    "ids": (
        "roberta",
        LONGFORMER,
        MASKED,
        {"global_token_ids": [7]},
        "a LongformerForMaskedLM has .*its head's global tokens",
    ),
    "no globals": ("bert", WINDOW, "ForSequenceClassification", {}, "Layer 0 has 'window' .*its head's global tokens"),
    "separators": ("bert", QUESTION, "ForQuestionAnswering", {}, "before the first of three separators"),
    "short texts": (
        "bert",
        {**LONGFORMER, "exact_length": 8},
        MASKED,
        {},
        "has exact_length=8; convert with --option exact_length=0",
    ),
    "asymmetric window": (
        "roberta",
        {**WINDOW, "left": 5},
        MASKED,
        {},
        "Layer 0 has 'window' with window=6, left=5, and every layer of",
    ),
    "window of one": (
        "roberta",
        {**WINDOW, "window": 1},
        MASKED,
        {},
        "a LongformerForMaskedLM has a window of two tokens or more",
    ),
    "full in Longformer": ("roberta", {"layers": "0=full;1=window:window=6"}, MASKED, {}, "Layer 0 has 'full'"),
    "decoder": ("bert", WINDOW, "Model", {"is_decoder": True}, "Layer 0 has 'window' .*equally wide on both sides"),
    "seeded blocks": (
        "bert",
        {"mechanism": "bigbird"},
        MASKED,
        {},
        "Layer 0 has 'bigbird', and every layer .*random_pattern=hf_eval",
    ),
    "blocks of the text": (
        "bert",
        {**BLOCKS, "blocks_over": "text"},
        MASKED,
        {},
        "Layer 0 has 'bigbird' .*blocks_over=input",
    ),
    "another head": ("bert", BLOCKS, "ForQuestionAnswering", {}, "head of a BertForQuestionAnswering differs"),
}


@every_case("case", REFUSED)
def test_a_model_that_no_stock_architecture_computes_is_refused(case: str) -> None:
    base, attention, head, changes, says = REFUSED[case]
    family = FAMILIES[base]
    config = family.config_class(**{**long_values(base), "long_attention": attention, **changes})
    choice = choose_stock(config, family.model_classes[long_class(base, head)], family)
    assert re.search(says, choice.reason), choice.reason
    assert choice.reason.endswith(".")
    assert ". " not in choice.reason, "one sentence"


@every_case("base", TEXT_FAMILIES, of=9, code=code_of_family)
def test_every_base_and_mechanism_has_a_stock_architecture_or_a_reason(base: str) -> None:
    family = FAMILIES[base]
    for mechanism in list_mechanisms(grid=False):
        values = {**long_values(base), "long_attention": long_attention(mechanism)}
        try:
            config = family.config_class(**values)
        except LongAttentionError:  # the mechanism has no form for this base
            continue
        stock = choose_stock(config, family.model_classes[language_model(base)], family)
        if stock.reason:
            assert stock.reason.endswith(".")
        else:
            with torch.device("meta"):
                getattr(transformers, stock.class_name)(stock.stock_config())


@pytest.mark.parametrize(
    "name", [pytest.param("RobertaForMaskedLM", marks=pytest.mark.slow), "RobertaForQuestionAnswering"]
)
def test_refusal_for_global_tokens_names_options_that_a_stock_architecture_has(
    name: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("RobertaForMaskedLM", tokenizer="roberta")
    getattr(transformers, name).from_pretrained(source).save_pretrained(source)
    arguments = ["convert", str(source), str(tmp_path / "long"), "--option", "window=8", "--option", "exact_length=0"]
    arguments += ["--max-length", "100", "--no-verify", "--overwrite"]
    with pytest.raises(SystemExit):
        main([*arguments, "--mechanism", "longformer"])
    with pytest.raises(CheckpointError) as refused:
        export_native(tmp_path / "long", tmp_path / "stock", verify=False)
    advised = re.search(r"convert with (--mechanism .+)\.$", str(refused.value))
    assert advised is not None, str(refused.value)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *advised[1].split()])
    assert ended.value.code == 0
    assert export_native(tmp_path / "long", tmp_path / "stock").verified


def test_stock_checkpoint_with_other_outputs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_long(tmp_path / "long", "roberta", LONGFORMER)
    swapped = {
        **LongformerStock.names,
        r"\.self\.(query|key)\.": lambda match: f".self.{'key' if match[1] == 'query' else 'query'}.",
    }
    monkeypatch.setattr(LongformerStock, "names", swapped)
    with pytest.raises(CheckpointError, match=r"Verification failed, so nothing was kept: .*must be equal"):
        export_native(tmp_path / "long", tmp_path / "stock")
    assert [path.name for path in tmp_path.iterdir()] == ["long"]


def test_stock_checkpoint_of_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    save_long(tmp_path / "long", "llama", WINDOW, "LlamaModel")
    change_json(tmp_path / "long", architectures=["LongLlamaForSequenceClassification"])
    with pytest.raises(
        CheckpointError, match=r"LongLlamaForSequenceClassification needs are missing in .*'score.weight'"
    ):
        export_native(tmp_path / "long", tmp_path / "stock")


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
def test_stock_checkpoint_loads_where_hf_longattn_is_not_installed(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("LlamaForCausalLM", tokenizer="gpt2")
    transformers.GenerationConfig(max_length=64, temperature=0.5, do_sample=True).save_pretrained(source)
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=128, verify=False)
    report = export_native(tmp_path / "long", tmp_path / "stock")
    assert "generates the same after 24 tokens" in {check.name for check in report.checks}
    assert read_json(tmp_path / "stock", "native_report.json")["plan"]["class"] == "MistralForCausalLM"
    assert read_json(tmp_path / "stock", "generation_config.json")["temperature"] == 0.5
    run = subprocess.run(
        [sys.executable, "-c", BLOCKER, str(tmp_path / "stock"), str(tmp_path / "logits")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["MistralForCausalLM", "128"]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long")
    ids = AutoTokenizer.from_pretrained(source)("long documents " * 20, return_tensors="pt").input_ids[:, :50]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, torch.load(tmp_path / "logits"), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "LONG", "OUT", "--format", "native"], "Layer 0 has 'strided'"),
        (["export", "SHORT", "OUT", "--format", "native"], "is a short checkpoint"),
        (
            ["export", "LONG", "OUT", "--format", "tensorrt"],
            "Unknown format 'tensorrt'; expected onnx, openvino, torch or",
        ),
    ],
)
def test_native_export_refuses_bad_input(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_long(tmp_path / "LONG", "llama", {"mechanism": "strided"})
    transformers.LlamaForCausalLM(AutoConfig.for_model("llama", **long_values("llama"))).save_pretrained(
        tmp_path / "SHORT"
    )
    paths = [str(tmp_path / word) if word.isupper() else word for word in arguments]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(paths)
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "OUT").exists()


def test_a_stock_checkpoint_without_a_check_is_not_called_verified(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    convert_checkpoint(checkpoint("BertModel"), tmp_path / "long", mechanism="full", max_length=128, verify=False)
    report = export_native(tmp_path / "long", tmp_path / "out", verify=False)
    assert (report.plan["class"], report.verified, report.to_dict()["verified"]) == ("BertModel", False, False)
