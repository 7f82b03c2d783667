"""Families: one module each, with every head of the base."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from transformers import AutoModelForCausalLM, BartConfig, GenerationMixin, GPT2Config, RobertaConfig, T5Config
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_longattn.families as families
from hf_longattn.conversion.architecture import read_long
from hf_longattn.errors import CheckpointError
from hf_longattn.modeling.family import definition
from hf_longattn.modeling.family.definition import (
    FAMILIES,
    exported_names,
    family_rows,
    known_family,
    long_prefix,
    longest_input,
    module_name,
)
from hf_longattn.names import load_module, module_names
from tests.cases import every_case
from tests.fresh_processes import run_fresh
from tests.reference.small_models import BASES, HEADS

FAULTY = """
import sys
from types import ModuleType
import hf_longattn
import hf_longattn.families
hf_longattn.families.__path__.insert(0, sys.argv[1])
from transformers import AutoConfig
from transformers.models.t5.configuration_t5 import T5Config
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.registration import register_standalone_encoders
from hf_longattn.names import PRIVATE_APIS

assert {"ernie", "gpt-sw3", "t5"} <= {*FAMILIES}
assert "LongBertModel" in dir(hf_longattn)
assert "LongErnieModel" not in dir(hf_longattn)
assert not hasattr(hf_longattn, "LongNothing")
assert hf_longattn.LongXLMRobertaConfig().model_type == "long_xlm-roberta"
assert hf_longattn.LongGPT2Config().model_type == AutoConfig.for_model("long_gpt2").model_type == "long_gpt2"
module = sys.modules["sentence_transformers.base.modules.transformer"] = ModuleType("transformer")
for name in ("feature_inputs", "logits_inputs", "generating_inputs", "standalone_encoders"):
    entries = [(T5Config, "transformers", "T5EncoderModel")] if name == "standalone_encoders" else {}
    setattr(module, PRIVATE_APIS[name][0].partition(":")[2], entries)
register_standalone_encoders(module)
assert len(entries) == 1
for ask, error in (
    (lambda: hf_longattn.LongErnieModel, "SyntaxError"),
    (lambda: FAMILIES["gpt-sw3"], "OptionError"),
    (lambda: hf_longattn.LongAttentionT5Model, "ModuleNotFoundError"),
):
    try:
        ask()
    except Exception as raised:
        assert type(raised).__name__ == error, raised
    else:
        raise AssertionError(error)
"""


def test_each_family_names_its_base_its_module_and_one_kind_of_positions() -> None:
    assert set(BASES) <= set(FAMILIES)
    for name, family in FAMILIES.items():
        assert family.base_model_type == name
        assert family.config_class.model_type == f"long_{name}"
        assert family.module == f"hf_longattn.families.{name.replace('-', '_')}"
        table = bool(family.position_tables)
        reads_other = family.spec.reads != "text"
        assert [table, family.rope, family.relative, family.no_positions, reads_other].count(True) == 1


def test_a_family_has_every_head_of_its_base() -> None:
    for base, family in FAMILIES.items():
        tables = [table for name, table in vars(modeling_auto).items() if name.startswith("MODEL_") and base in table]
        known = {
            head for table in tables for head in (table[base] if isinstance(table[base], tuple) else (table[base],))
        }
        # Qwen2's weights may go into the first; the second is a decoder alone, of a family whose encoder has
        # mechanisms
        head_of_a_tower = {
            f"{name.removesuffix('Model')}ForImageClassification" for name in family.model_classes if family.towers
        }
        assert known - {"JevForDecision", "WhisperForCausalLM"} - head_of_a_tower <= set(family.model_classes), base
    assert "EsmForProteinFolding" not in FAMILIES["esm"].model_classes
    assert FAMILIES["llama"].model_classes["LlamaForCausalLM"] == "LongLlamaForCausalLM"
    assert FAMILIES["gpt2"].model_classes["GPT2DoubleHeadsModel"] == "LongGPT2DoubleHeadsModel"


@every_case(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_a_long_class_is_its_base_class(base: str, head: str) -> None:
    plain = getattr(transformers, head)
    made = getattr(families, f"{long_prefix(base)}{head}")
    assert issubclass(made, plain)
    assert made is FAMILIES[base].model_class(head) is FAMILIES[base].long_class_of(plain)
    assert made.config_class is FAMILIES[base].config_class
    assert made.can_generate() == plain.can_generate()
    assert (GenerationMixin in made.__bases__) == plain.can_generate()
    assert pickle.loads(pickle.dumps(made)) is made


def test_unknown_classes_and_attributes_are_not_in_families() -> None:
    assert not hasattr(families, "LongNothing")
    assert not hasattr(families.FAMILIES["bert"], "nothing")
    with pytest.raises(ImportError):
        exec("from hf_longattn.families.bert import LongBertForNothing")
    assert FAMILIES["bert"].long_class_of(transformers.RobertaModel) is None


def test_the_names_of_a_family_are_known_before_its_import() -> None:
    different = {
        base: {*exported_names(base)} ^ {*family.exports}
        for base, family in FAMILIES.items()
        if exported_names(base) != family.exports
        or not family.base_config_class.__module__.startswith(f"{family.base_package}.")
    }
    assert not different


def test_a_class_and_a_long_checkpoint_are_looked_up_in_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = definition.load_module
    monkeypatch.setattr(definition, "load_module", lambda package, name: loaded.append(name) or load(package, name))
    for name, module in (
        ("LongWhisperForConditionalGeneration", "whisper"),
        ("LongGemma3ForCausalLM", "gemma3_text"),
        ("LongT5Model", None),
    ):
        assert definition.family_for_class(name) is (module and FAMILIES[module])
        assert {*loaded} <= {module}, name
        loaded.clear()
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    long: Any = SimpleNamespace(
        config={"model_type": "long_xlm-roberta", "architectures": ["LongXLMRobertaModel"], **sizes},
        name="x",
        folder=Path("x"),
    )
    assert read_long(long)[1] == "LongXLMRobertaModel"
    assert {*loaded} == {"xlm_roberta"}
    loaded.clear()
    with pytest.raises(CheckpointError, match=r"Did you mean 'long_bert'"):
        read_long(SimpleNamespace(config={"model_type": "long_brt"}, name="x"))  # type: ignore[arg-type]
    assert not loaded


def test_a_faulty_family_file_breaks_that_family_alone(tmp_path: Path) -> None:
    """Its error is raised when it is asked for, by name or by model type."""
    (tmp_path / "ernie.py").write_text("FAMILY = Family(\n", encoding="utf-8")
    (tmp_path / "gpt_sw3.py").write_text("family = None\n", encoding="utf-8")
    (tmp_path / "t5.py").write_text("import a_module_that_is_not_there\n", encoding="utf-8")
    done = run_fresh("-c", FAULTY, tmp_path, level="torch")
    assert done.returncode == 0, done.stderr


def test_a_user_s_subclass_of_a_long_config_belongs_to_the_family() -> None:
    class MyConfig(families.LongBertConfig):
        pass

    assert known_family(MyConfig()) is FAMILIES["bert"]
    assert known_family(families.LongGPT2Config) is FAMILIES["gpt2"]


def test_a_family_is_one_short_file_or_one_row() -> None:
    installed = {module_name(base) for base in FAMILIES}  # transformers 5.20 lacks some bases
    files = {*module_names("families")} & installed
    rows = {*family_rows()}
    assert installed <= files | rows
    assert rows - installed == {module_name(base) for base, _ in family_rows().values() if base not in CONFIG_MAPPING}
    assert not files & rows
    for name in files:
        module = load_module("families", name)
        assert len(Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()) <= 280, name


def test_the_longest_input_of_a_long_config_and_of_its_base() -> None:
    """Rows of the table that are no positions do not count, and BART's decoder alone has no length besides the
    base's."""
    assert longest_input(RobertaConfig(max_position_embeddings=66)) == 64
    assert longest_input(families.LongRobertaConfig(max_position_embeddings=66)) == 64
    assert longest_input(BartConfig(max_position_embeddings=64)) == 64
    assert longest_input(BartConfig(max_position_embeddings=64, is_encoder_decoder=False, is_decoder=True)) == 64
    assert longest_input(GPT2Config(n_positions=32)) == 32
    assert longest_input(T5Config()) is None


def test_a_head_without_a_long_class_is_refused_by_name(tmp_path: Path) -> None:
    """Whisper's decoder alone has nothing long, and transformers' own error names two modules."""
    config = families.LongWhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        vocab_size=9,
        pad_token_id=0,
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^WhisperForCausalLM has no Long class; load the model as LongWhisperForAudioClassif"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)
