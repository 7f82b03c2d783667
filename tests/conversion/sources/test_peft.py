"""An adapter's base is converted, and the adapter stands beside it or is merged; with a covering window both give what peft gives."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, ExportError
from hf_longattn.export import export_checkpoint, export_native
from tests.cells import every_cell

from ...trained import tokenizer_of
from ..conftest import LENGTH

Checkpoint = Callable[..., Path]
COVERING = {"mechanism": "window", "window": 2 * LENGTH, "max_length": 4 * LENGTH}
CAUSAL = {**COVERING, "window": LENGTH}  # looks back no further than the source did, so that rotary positions stay
TARGETS = {"BertForMaskedLM": ["query", "value"], "LlamaForCausalLM": ["q_proj", "v_proj", "up_proj"]}


@pytest.fixture
def adapter(checkpoint: Checkpoint, tmp_path: Path) -> Callable[..., Path]:
    """adapter("BertForMaskedLM") -> the folder of an adapter that changes its outputs."""

    def build(name: str, config: peft.PeftConfig | None = None, model_class: Any = None) -> Path:
        torch.manual_seed(1)
        base = (model_class or getattr(transformers, name)).from_pretrained(checkpoint(name))
        model = peft.get_peft_model(base, config or peft.LoraConfig(r=4, target_modules=TARGETS[name], init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return build


def logits(model: Any, length: int = LENGTH) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(length)[None] + 5).logits


def source_logits(name: str, adapter: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the plain base alone, and with the adapter."""
    base = getattr(transformers, name).from_pretrained(adapter.parent / "source")
    alone = logits(base)
    return alone, logits(peft.PeftModel.from_pretrained(base, adapter))


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_stands_beside_its_converted_base(name: str, adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter(name)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "revision": "main"}))
    report = convert_checkpoint(folder, tmp_path / "long", **(CAUSAL if name.startswith("Llama") else COVERING))
    assert report.passed
    assert json.loads((tmp_path / "long" / "adapter" / "adapter_config.json").read_text())["revision"] is None
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(report.files)
    alone, expected = source_logits(name, folder)
    base = transformers.AutoModelForCausalLM if name.startswith("Llama") else transformers.AutoModelForMaskedLM
    converted = base.from_pretrained(tmp_path / "long")
    torch.testing.assert_close(logits(converted), alone, atol=1e-4, rtol=1e-4)
    model = peft.PeftModel.from_pretrained(converted, tmp_path / "long" / "adapter")
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)
    assert (expected - alone).abs().max() > 1e-2
    assert logits(model, 4 * LENGTH).isfinite().all()
    again = peft.AutoPeftModel.from_pretrained(tmp_path / "long" / "adapter", import_allowlist=["hf_longattn"])
    torch.testing.assert_close(logits(again), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("beside", [True, False], ids=["beside the weights", "alone"])
def test_no_export_leaves_an_adapter_out(beside: bool, adapter: Callable[..., Path], tmp_path: Path) -> None:
    convert_checkpoint(adapter("LlamaForCausalLM"), tmp_path / "long", verify=False, **CAUSAL)
    long = tmp_path / "long" if beside else tmp_path / "long" / "adapter"
    with pytest.raises(ExportError, match=r"would leave out the adapter in '.*adapter'; convert with --merge-adapter"):
        export_checkpoint(long, tmp_path / "out", format="torch")
    export_native(long, tmp_path / "twin", verify=False)
    converted, twin = (
        peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / one), tmp_path / one / "adapter")
        for one in ("long", "twin")
    )
    torch.testing.assert_close(logits(twin, 2 * LENGTH), logits(converted, 2 * LENGTH), atol=1e-4, rtol=1e-4)


def test_an_adapter_is_merged_before_a_twin_with_other_names(adapter: Callable[..., Path], tmp_path: Path) -> None:
    convert_checkpoint(adapter("BertForMaskedLM"), tmp_path / "long", verify=False, **COVERING)
    with pytest.raises(ExportError, match="would leave out the adapter"):
        export_native(tmp_path / "long", tmp_path / "twin")
    assert not (tmp_path / "twin").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("name", TARGETS)
def test_a_merged_adapter_is_in_the_weights(name: str, adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter(name)
    arguments = {**(CAUSAL if name.startswith("Llama") else COVERING), "merge_adapter": True}
    plan = plan_conversion(folder, **arguments)
    report = convert_checkpoint(folder, tmp_path / "long", **arguments)
    assert report.passed
    assert report.plan == plan.to_dict()
    assert not (tmp_path / "long" / "adapter").exists()
    base = transformers.AutoModelForCausalLM if name.startswith("Llama") else transformers.AutoModelForMaskedLM
    found = logits(base.from_pretrained(tmp_path / "long"))
    torch.testing.assert_close(found, source_logits(name, folder)[1], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("from_their_files")
def test_a_merged_adapter_is_verified_from_the_files(adapter: Callable[..., Path], tmp_path: Path) -> None:
    report = convert_checkpoint(adapter("BertForMaskedLM"), tmp_path / "long", merge_adapter=True, **COVERING)
    assert {check.name: check.status for check in report.checks}["equal where the mechanism covers the input"] == "passed"


def test_a_head_of_its_own_stays_with_the_adapter(adapter: Callable[..., Path], tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], init_lora_weights=False)
    folder = adapter("BertModel", config, transformers.BertForSequenceClassification)
    with pytest.raises(CheckpointError, match="'classifier', which its base does not have"):
        convert_checkpoint(folder, tmp_path / "long", merge_adapter=True, **COVERING)
    convert_checkpoint(folder, tmp_path / "long", **COVERING)
    long = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "long")
    short = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "source")
    with_adapter = [
        logits(peft.PeftModel.from_pretrained(one, where)) for one, where in ((long, tmp_path / "long" / "adapter"), (short, folder))
    ]
    torch.testing.assert_close(*with_adapter, atol=1e-4, rtol=1e-4)


@pytest.mark.thorough
def test_heads_that_peft_names_and_nobody_has_are_no_hindrance(adapter: Callable[..., Path], tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], init_lora_weights=False)
    folder = adapter("RobertaForSequenceClassification", config)
    assert "score" in json.loads((folder / "adapter_config.json").read_text())["modules_to_save"]
    convert_checkpoint(folder, tmp_path / "long", merge_adapter=True, **COVERING)
    found = logits(transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "long"))
    torch.testing.assert_close(found, source_logits("RobertaForSequenceClassification", folder)[1], atol=1e-4, rtol=1e-4)


def test_the_card_puts_the_adapter_on_the_model_of_its_task(adapter: Callable[..., Path], tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], init_lora_weights=False)
    convert_checkpoint(adapter("BertForMaskedLM", config, transformers.BertForSequenceClassification), tmp_path / "long", **COVERING)
    tokenizer_of("bert", LENGTH).save_pretrained(tmp_path / "long")
    card = (tmp_path / "long" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    [code] = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "usage", "exec"), names)
    assert isinstance(names["model"], peft.PeftModelForSequenceClassification)


def test_a_position_table_of_the_old_length_is_merged_or_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    config = peft.LoraConfig(r=4, target_modules=["query"], modules_to_save=["position_embeddings"])
    folder = adapter("BertForMaskedLM", config)
    with pytest.raises(CheckpointError, match="which has the old length; add --merge-adapter"):
        convert_checkpoint(folder, tmp_path / "long", **COVERING)
    assert not (tmp_path / "long").exists()
    assert convert_checkpoint(folder, tmp_path / "long", merge_adapter=True, **COVERING).plan["tensor_counts"]["extended"] == 1


def test_what_cannot_be_opened_is_a_sentence(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter("LlamaForCausalLM")
    with pytest.raises(CheckpointError, match="no adapter to merge; leave --merge-adapter out"):
        plan_conversion(tmp_path / "source", merge_adapter=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    for base, sentence in (
        (None, "names no base_model_name_or_path"),
        (str(tmp_path / "gone"), "The base of the adapter .* cannot be opened: There is no folder"),
        (str(folder), "is itself an adapter"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(CheckpointError, match=sentence):
            convert_checkpoint(folder, tmp_path / "long")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="overlap"):
        convert_checkpoint(folder, folder / "long", **COVERING)
    shutil.move(folder / "adapter_model.safetensors", tmp_path / "kept")
    torch.save(weights, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"only 'adapter_model.bin': load it with peft and save it again"):
        convert_checkpoint(folder, tmp_path / "long")
    save_file({"other.lora_A.weight": torch.zeros(4, 1)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="belongs to another base"):
        convert_checkpoint(folder, tmp_path / "long", **COVERING)
    assert not (tmp_path / "long").exists()


@every_cell(
    ("fields", "sentence"),
    [
        ({"r": "8"}, "r='8', which must be a whole number"),
        ({"r": 0}, "a rank is 0, which must be a whole number of at least 1"),
        ({"r": -1}, "a rank is -1, which must be a whole number of at least 1"),
        ({"r": 10**12}, "says r=1000000000000, but '.*lora_A.weight' has the rank 4"),
        ({"r": float("nan")}, "r=nan, which must be a whole number"),
        ({"rank_pattern": {"query": 0.5}}, "a rank is 0.5, which must be a whole number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan, which must be finite"),
        ({"lora_dropout": float("inf")}, "lora_dropout=inf, which must be finite"),
        ({"alpha_pattern": {"query": float("-inf")}}, "alpha_pattern=.*, which must be finite"),
        ({"target_modules": ["query", "../../etc/passwd"]}, "target_modules='../../etc/passwd', which is not the name of a module"),
        ({"modules_to_save": ["/tmp/head"]}, "modules_to_save='/tmp/head', which is not the name of a module"),
        ({"rank_pattern": {"a/b": 4}}, "rank_pattern='a/b', which is not the name of a module"),
        ({"lora_alpha": [8]}, "lora_alpha=.*, which must be a number"),
        ({"target_modules": 5}, "target_modules=5, which must be a name"),
        ({"target_modules": [5]}, "which must be a name"),
        ({"target_modules": "(query"}, "not a regular expression"),
        ({"exclude_modules": "*"}, "not a regular expression"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"modules_to_save": "classifier"}, "which must be a list of text"),
        ({"peft_type": None}, "names no peft_type"),
        ({"peft_type": "LORE"}, "peft knows .* Did you mean 'LORA'"),
        ({"task_type": ["SEQ_CLS"]}, "task_type=.*, which must be text"),
        ({"task_type": {}}, "task_type=.*, which must be text"),
        ({"revision": {"a": 1}}, "revision=.*, which must be text"),
        ({"base_model_name_or_path": "\ud800"}, "not valid JSON"),
    ],
    ids=str,
)
def test_an_adapters_config_of_odd_types_is_a_sentence(
    fields: dict[str, Any], sentence: str, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter("BertForMaskedLM")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    for merge in (False, True):
        with pytest.raises(CheckpointError, match=sentence):
            convert_checkpoint(folder, tmp_path / "long", merge_adapter=merge, **COVERING)
    assert not (tmp_path / "long").exists()


@pytest.mark.parametrize("name", ["../../evil.lora_A.weight", "base_model.model/bert.lora_A.weight"])
def test_an_adapters_tensor_that_is_named_like_a_path_is_refused(name: str, adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter("BertForMaskedLM")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, name: torch.zeros(4, 1)}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="which is in no module; save the adapter again"):
        convert_checkpoint(folder, tmp_path / "long", **COVERING)
    assert not (tmp_path / "long").exists()


def test_an_adapter_without_tensors_or_with_nan_is_a_sentence(adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter("BertForMaskedLM")
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"hold NaN or infinite numbers: .* \(of the adapter\)"):
        convert_checkpoint(folder, tmp_path / "long", **COVERING)
    save_file({}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        convert_checkpoint(folder, tmp_path / "long", **COVERING)
    assert not (tmp_path / "long").exists()
