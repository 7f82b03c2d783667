"""Tables of transformers, peft and sentence-transformers that are keyed by model type or config class: Long models are in each of them."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from hf_longattn import convert_checkpoint
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.registration import TABLES
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.reference.small_models import long_model, plain_model
from tests.trained import tokenizer_of

BUT = {
    ("peft.utils.transformers_weight_conversion", "_MOE_TARGET_MODULE_MAPPING"): {"mixtral", "qwen2_moe"},
    ("peft.utils.transformers_weight_conversion", "_MOE_FUSED_TARGETS"): {"mixtral", "qwen2_moe"},
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_DECISION_MAPPING_NAMES"): {"qwen2", "qwen3_5_text"},
    ("transformers.models.auto.configuration_auto", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"): set(FAMILIES),
    ("transformers.models.auto.image_processing_auto", "MISSING_IMAGE_PROCESSOR_MAPPING_NAMES"): set(FAMILIES),
    ("transformers.models.auto.feature_extraction_auto", "MISSING_FEATURE_EXTRACTOR_MAPPING_NAMES"): set(FAMILIES),
    ("transformers.models.auto.processing_auto", "MISSING_PROCESSOR_MAPPING_NAMES"): set(FAMILIES),
}
"""(module, table) -> bases whose Long types need not be there: architectures that model types are
mapped to; a head of another model; transformers' own packages; names that are entered into the table next to them."""


@every_case("module", TABLES)
def test_every_table_that_knows_a_base_knows_its_long_type(module: str) -> None:
    tables = vars(pytest.importorskip(module))
    for name, table in tables.items():
        keys = set(table) if type(table) in (dict, OrderedDict, set, frozenset) else set()
        keys -= {key for key in keys if isinstance(table, dict) and table[key] is None}  # without a package that is not installed
        keys |= {part for key in keys if isinstance(key, tuple) for part in key}
        missing = {base for base in FAMILIES if base in keys and f"long_{base}" not in keys}
        assert missing <= BUT.get((module, name), set()), name


@pytest.mark.thorough
def test_sentence_transformers_loads_the_encoder_of_a_long_encoder_decoder(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    tokenizer = tokenizer_of("t5", 512)
    config = small_config("t5", Shape(tokens=512, vocabulary=len(tokenizer)), pad_token_id=tokenizer.pad_token_id)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", window=2048, max_length=1024, verify=False)
    texts, embeddings = ["The keeper lights the lamp. " * 8, "A short one."], []
    for folder, name in (("short", "T5EncoderModel"), ("long", "LongAttentionT5EncoderModel")):
        model = sentence_transformers.SentenceTransformer(str(tmp_path / folder), device="cpu")
        assert type(model[0].model).__name__ == name
        embeddings.append(model.encode(texts, convert_to_tensor=True))
    torch.testing.assert_close(embeddings[0], embeddings[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "head", "experts"),
    [("mixtral", "MixtralForCausalLM", ["w1", "w2", "w3"]), ("qwen3_moe", "Qwen3MoeForCausalLM", ["gate_proj", "up_proj", "down_proj"])],
)
def test_experts_are_adapted_by_their_old_names(base: str, head: str, experts: list[str]) -> None:
    peft = pytest.importorskip("peft")
    trained = []
    for model in (plain_model(base, head), long_model(base, head, {"mechanism": "window", "window": 16})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=experts, r=4))
        trained.append(sorted(name for name, parameter in adapted.named_parameters() if parameter.requires_grad))
    assert trained[0]
    assert trained[0] == trained[1]
