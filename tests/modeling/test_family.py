"""Families: one file each, with every head of the base."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import transformers
from transformers import AutoModelForCausalLM, BartConfig, GenerationMixin, GPT2Config, RobertaConfig, T5Config
from transformers.models.auto import modeling_auto

import hf_longattn.families as families
from hf_longattn.errors import CheckpointError
from hf_longattn.modeling.family.definition import FAMILIES, family_of, long_prefix, longest_input
from tests.reference.small_models import BASES, HEADS


def test_the_families() -> None:
    assert set(BASES) <= set(FAMILIES)
    for name, family in FAMILIES.items():
        assert family.base_model_type == name
        assert family.config_class.model_type == f"long_{name}"
        assert family.module == f"hf_longattn.families.{name.replace('-', '_')}"
        table, reads = bool(family.position_tables), [family.grid is not None, family.audio is not None, bool(family.towers)]
        assert [table, family.rope, family.relative, *reads].count(True) == 1


def test_every_head_of_the_base_is_there() -> None:
    for base, family in FAMILIES.items():
        tables = [table for name, table in vars(modeling_auto).items() if name.startswith("MODEL_") and base in table]
        known = {head for table in tables for head in (table[base] if isinstance(table[base], tuple) else (table[base],))}
        # Qwen2's weights may go into the first; the second is a decoder alone, of a family whose encoder has mechanisms
        head_of_a_tower = {f"{name.removesuffix('Model')}ForImageClassification" for name in family.heads if family.towers}
        assert known - {"JevForDecision", "WhisperForCausalLM"} - head_of_a_tower <= set(family.heads), base
    assert "EsmForProteinFolding" not in FAMILIES["esm"].heads
    assert FAMILIES["llama"].heads["LlamaForCausalLM"] == "LongLlamaForCausalLM"
    assert FAMILIES["gpt2"].heads["GPT2DoubleHeadsModel"] == "LongGPT2DoubleHeadsModel"


@pytest.mark.parametrize(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_a_long_class_is_its_base_class(base: str, head: str) -> None:
    plain = getattr(transformers, head)
    made = getattr(families, f"{long_prefix(base)}{head}")
    assert issubclass(made, plain)
    assert made is FAMILIES[base].model_class(head) is FAMILIES[base].long_class_of(plain)
    assert made.config_class is FAMILIES[base].config_class
    assert made.can_generate() == plain.can_generate()
    assert (GenerationMixin in made.__bases__) == plain.can_generate()
    assert pickle.loads(pickle.dumps(made)) is made


def test_unknown_names() -> None:
    assert not hasattr(families, "LongNothing")
    assert not hasattr(families.FAMILIES["bert"], "nothing")
    with pytest.raises(ImportError):
        exec("from hf_longattn.families.bert import LongBertForNothing")
    assert FAMILIES["bert"].long_class_of(transformers.RobertaModel) is None


def test_a_user_s_own_config_belongs_to_its_family() -> None:
    class MyConfig(families.LongBertConfig):
        pass

    assert family_of(MyConfig()) is FAMILIES["bert"]
    assert family_of(families.LongGPT2Config) is FAMILIES["gpt2"]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_is_one_short_file(family: families.Family) -> None:
    """Short, unless attention modules of the base are replaced by subclasses."""
    file = Path(str(sys.modules[family.module].__file__))
    assert len(file.read_text(encoding="utf-8").splitlines()) <= (40 if family.mixin is None else 180), file


def test_the_longest_input_of_a_long_config_and_of_its_base() -> None:
    """Rows of the table that are no positions do not count, and BART's decoder alone has no length besides the base's."""
    assert longest_input(RobertaConfig(max_position_embeddings=66)) == 64
    assert longest_input(families.LongRobertaConfig(max_position_embeddings=66)) == 64
    assert longest_input(BartConfig(max_position_embeddings=64)) == 64
    assert longest_input(BartConfig(max_position_embeddings=64, is_encoder_decoder=False, is_decoder=True)) == 64
    assert longest_input(GPT2Config(n_positions=32)) == 32
    assert longest_input(T5Config()) is None


def test_a_head_without_a_long_class_is_a_sentence(tmp_path: Path) -> None:
    """Whisper's decoder alone has nothing long, and transformers' own error names two modules."""
    config = families.LongWhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=9, pad_token_id=0
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"^WhisperForCausalLM has no Long class; load the model as LongWhisperForAudioClassif"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
