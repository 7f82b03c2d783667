"""Tables of transformers, peft and sentence-transformers that are keyed by model type or config class: Long models are in each of them."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from hf_longattn import convert_checkpoint
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.definition import family_names
from hf_longattn.modeling.family.registration import TABLES
from scripts.dev.tools.small_models import TEXT_FAMILIES, Shape, small_config
from tests.cells import every_cell
from tests.grids import grid
from tests.reference.small_models import long_config, long_model, plain_config, plain_model, tokens
from tests.trained import tokenizer_of

LIBRARIES = ("transformers", "peft", "sentence_transformers", "accelerate")
ENTERED = {
    "transformers/conversion_mapping.py": "hf_longattn.modeling.attach.weights registers the classes",
    "transformers/cli/serving/utils.py": "transformers.cli.serving.utils",
    "transformers/integrations/awq.py": "transformers.integrations.awq",
    "transformers/models/auto/auto_mappings.py": "transformers.models.auto.configuration_auto",
    "transformers/models/auto/feature_extraction_auto.py": "transformers.models.auto.feature_extraction_auto",
    "transformers/models/auto/processing_auto.py": "transformers.models.auto.processing_auto",
    "transformers/models/auto/image_processing_auto.py": "transformers.models.auto.image_processing_auto",
    "transformers/models/auto/modeling_auto.py": "transformers.models.auto.modeling_auto",
    "transformers/models/auto/tokenization_auto.py": "transformers.models.auto.tokenization_auto",
    "transformers/pipelines/automatic_speech_recognition.py": "transformers.pipelines",
    "transformers/pipelines/document_question_answering.py": "transformers.pipelines",
    "peft/tuners/adaption_prompt/config.py": "peft.tuners.adaption_prompt.config",
    "peft/utils/constants.py": "peft.utils.constants",
    "peft/utils/transformers_weight_conversion.py": "peft.utils.transformers_weight_conversion",
    "sentence_transformers/base/modality.py": "sentence_transformers.base.modality",
    "sentence_transformers/base/modules/transformer.py": "sentence_transformers.base.modules.transformer",
}
"""Files with tables, and the module by whose import Long models enter them (:data:`hf_longattn.modeling.family.registration.TABLES`)."""
LEFT = {
    "transformers/cli/chat.py": "an example of a name",
    "transformers/generation/utils.py": "Whisper's prompts, which hf_longattn.families.whisper keeps; MiniMax's cache, by the class's name",
    "transformers/integrations/__init__.py": "a method of quantisation that is called bitnet",
    "transformers/integrations/ggml.py": "GGUF's names of architectures, and a GGUF file holds a base",
    "transformers/integrations/gguf/gguf_config_mapping.py": "the same",
    "transformers/integrations/gguf/gguf_conversion_mapping.py": "the same",
    "transformers/integrations/gguf/gguf_tokenizer_mapping.py": "the same",
    "transformers/loss/loss_utils.py": "parts of names of classes, which Long classes have, too",
    "transformers/modeling_gguf_pytorch_utils.py": "the same",
    "transformers/models/auto/configuration_auto.py": "a config.json without hidden_act, of a Mistral on the Hub",
    "transformers/pipelines/zero_shot_image_classification.py": "part of a model type, which the Long one has, too",
    "transformers/quantizers/auto.py": "a method of quantisation that is called gemma",
    "transformers/tokenization_mistral_common.py": "a format of files",
    "transformers/tokenization_utils_tokenizers.py": "a format of files",
    "transformers/utils/auto_docstring.py": "an example in documentation",
    "peft/peft_model.py": "substrings of a model type, and versions of transformers before those that are allowed",
    "peft/tuners/adaption_prompt/model.py": "GPT-2 by name, which is left out of the table",
    "peft/tuners/tuners_utils.py": "kinds of layers, by attributes",
    "sentence_transformers/sentence_transformer/modules/__init__.py": "a module of its own that is called CLIPModel",
    "sentence_transformers/sentence_transformer/modules/clip_model.py": "the same",
    "sentence_transformers/util/misc.py": "names of repositories",
    "transformers/utils/quantization_config.py": "a method of quantisation that is called gemma",
    "accelerate/utils/dataclasses.py": "Megatron's own models",
    "accelerate/utils/megatron_lm.py": "the same",
}
"""Files that name model types of bases and need no Long one, and why."""


@cache
def classes() -> frozenset[str]:
    """Config classes and model classes of all bases."""
    families = FAMILIES.values()
    return frozenset(name for family in families for name in (family.base_config_class.__name__, *family.model_classes, *family.parts))


@cache
def mentions() -> re.Pattern[str]:
    """A model type of a base in quotes, or one of its classes."""
    return re.compile(rf"""["']({"|".join(map(re.escape, FAMILIES))})["']|\b({"|".join(classes())})\b""")


def files_that_name_bases(library: str) -> Iterator[str]:
    """The files of an installed library, other than models' own, with a constant or a name that is a base's."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{library} is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root.parent)
        if "test_utils" in inside.parts or (inside.parts[1] == "models" and inside.parts[2] != "auto"):
            continue
        text = path.read_text(encoding="utf-8")
        if not mentions().search(text):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = list(ast.walk(ast.parse(text)))
        texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        if texts & (FAMILIES.keys() | classes()) or {node.id for node in nodes if isinstance(node, ast.Name)} & classes():
            yield inside.as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_file_that_names_bases_is_known(library: str) -> None:
    """A new table of a library is noticed here: enter Long models into it (hf_longattn/modeling/family/registration.py), or say why not."""
    found = set(files_that_name_bases(library))
    assert found <= ENTERED.keys() | LEFT.keys()


def test_every_module_of_tables_is_one_with_an_entry() -> None:
    entered = {module for module in ENTERED.values() if "." in module and " " not in module}
    assert entered | {"transformers.modeling_utils"} == TABLES.keys()  # the latter for the attention functions


BUT = {
    ("peft.tuners.adaption_prompt.config", "TRANSFORMERS_MODEL_CONFIG"): {"gpt2"},
    ("peft.utils.transformers_weight_conversion", "_MOE_TARGET_MODULE_MAPPING"): {"mixtral", "qwen2_moe"},
    ("peft.utils.transformers_weight_conversion", "_MOE_FUSED_TARGETS"): {"mixtral", "qwen2_moe"},
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_DECISION_MAPPING_NAMES"): {"qwen2", "qwen3_5_text"},
    ("transformers.models.auto.configuration_auto", "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"): set(FAMILIES),
    ("transformers.models.auto.image_processing_auto", "MISSING_IMAGE_PROCESSOR_MAPPING_NAMES"): set(FAMILIES),
    ("transformers.models.auto.feature_extraction_auto", "MISSING_FEATURE_EXTRACTOR_MAPPING_NAMES"): set(FAMILIES),
    ("transformers.models.auto.processing_auto", "MISSING_PROCESSOR_MAPPING_NAMES"): set(FAMILIES),
}
"""(module, table) -> bases whose Long types need not be there: GPT-2, which peft asks for by name; architectures that model types are
mapped to; a head of another model; transformers' own packages; names that are entered into the table next to them."""


@every_cell("module", TABLES)
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


def tokenizer_config(folder: Path, **values: Any) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


TOKENIZED = family_names(tuple(TEXT_FAMILIES))
NAMED = ["LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast"]


def is_its_turn(base: str, named: str) -> bool:
    return [*TOKENIZED].index(base) % len(NAMED) == NAMED.index(named)


@pytest.mark.thorough
@every_cell(("base", "named"), grid(itertools.product(TOKENIZED, NAMED), is_its_turn), of=4)
def test_a_tokenizer_loads_as_its_base_s_whatever_class_the_files_name(base: str, named: str, tmp_path: Path) -> None:
    try:
        tokenizer_of(base).save_pretrained(tmp_path)
    except AssertionError:  # a class that cannot be trained
        tokenizer_of("gpt2").save_pretrained(tmp_path)
    tokenizer_config(tmp_path, tokenizer_class=named)
    text, read = "The keeper's notebooks, in 1987:\n  forty years.", []
    for config in (plain_config(base), long_config(base, None)):
        config.save_pretrained(tmp_path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(tmp_path)
            read.append((type(tokenizer).__name__, tokenizer(text)["input_ids"]))
        except Exception as error:
            read.append((type(error).__name__, []))
    assert read[0] == read[1]


@pytest.mark.parametrize("base", ["llama", "mistral"])
def test_adaption_prompts_take_long_models(base: str) -> None:
    peft = pytest.importorskip("peft")
    plain = plain_model(base, f"{base.title()}ForCausalLM")
    long = long_model(base, f"{base.title()}ForCausalLM", {"mechanism": "full"})
    logits = []
    for model in (plain, long):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"))
        for name, parameter in adapted.named_parameters():
            parameter.data.fill_(1.0) if "gate" in name and "adaption" in name else None
        with torch.no_grad():
            logits.append(adapted(input_ids=tokens(1, 20)).logits)
    torch.testing.assert_close(logits[0], logits[1])


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
