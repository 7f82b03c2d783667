"""Families derived from transformers' classes, without a source file of ours.

:func:`derive` builds a base twice on the meta device, for two lengths, and reads positions, heads and direction from
it. `make docs` stores these facts in ``families.json``, so that a look-up builds nothing. :mod:`hf_longattn.families`
makes a family's module from its row.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from hf_longattn.errors import CheckpointError
from hf_longattn.modeling.attach.attention_sites import attention_sites
from hf_longattn.modeling.family.definition import MODEL_NAME, base_package, long_names, module_name, stored_facts
from hf_longattn.names import module_names

LENGTHS = (77, 101)
"""The two maximum lengths, in tokens, for which a base is built. Parameters that grow by the difference are position
tables."""
PADDING = 3
"""The padding token of the small models."""
LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers")
"""Fields of configs with a number of layers."""
UNSET = {
    **{
        "vocab_size": 99,
        "n_routed_experts": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
    },
    **{
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "head_dim": 16,
        "moe_topk": 1,
        "num_shared_expert": 1,
        "num_key_value_heads": 2,
    },
    "layer_types": ["full_attention"],
}
"""Values for fields that a config class leaves unset, without which a model cannot be built."""
FACTS: dict[str, dict[str, Any]] = {
    "modernbert": {"attributes": {"default_mechanism": "full"}},
    "esm": {"classes": ["EsmModel", "EsmForMaskedLM", "EsmForSequenceClassification", "EsmForTokenClassification"]},
}
"""Facts that replace those read from the small models. ModernBERT's global layers stay full unless a mechanism is
chosen. The folding model of ESM is left out, because it computes on all pairs of tokens."""
WITHOUT_POSITIONS = ("granitemoehybrid", "jamba", "kimi_linear", "nemotron_h", "zamba", "zamba2")
"""Model types whose attention has no positions, by reading their code: a probe cannot tell them from those with a
formula of their own."""
PROBED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
}
"""Further values of single bases, without which their models cannot be built."""
OTHER_INPUTS = "it reads other inputs than a text"
OWN_ATTENTION = "it does not use transformers' AttentionInterface"
OWN_CHOICE = "an indexer beside its attention chooses the keys of each query"
OWN_CACHE = "its convolutions need cache layers of their own"
OWN_DECODING = "transformers gives other outputs with a cache than in one pass"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("blt", "git", "moshi", "musicgen", "musicgen_melody", "phi4_multimodal"), OTHER_INPUTS),
    **dict.fromkeys(
        ("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text", "qwen4_exp_text"), OWN_CHOICE
    ),
    **dict.fromkeys(("lfm3", "zaya"), OWN_CACHE),
    **dict.fromkeys(("bamba", "dory"), OWN_DECODING),
    "bailing_hybrid": "some tensors have other names in its checkpoints than in the model",
    "bert-generation": "its model classes have unusual names, BertGenerationEncoder and BertGenerationDecoder",
    "codegen": "its config has no `pad_token_id`",
    "dbrx": "transformers cannot build it from its default config, which has no `rope_theta`",
    "deepseek_v4": "its layers append compressed keys to those of the tokens",
    "doge": OWN_ATTENTION,
    "gemma3n_text": "its last layers read keys and values of earlier layers",
    "lara_mini": "its linear and sliding layers share one cache",
    "llama4_text": "its layers attend in chunks (`attention_chunk_size`), and a mechanism would replace the chunks",
    "longcat_flash": "its attention modules have an unusual name, LongcatFlashMLA",
    "recurrent_gemma": "its config has no length",
}
"""Model types without a family -> the reason, if :func:`derive` sees none or a wrong one
(``scripts.dev.tools.check_derived`` fails)."""


def families_json() -> str:
    """The text of ``hf_longattn/families/families.json``, with a line for each model type.

    The facts are those of the newest version of transformers that wrote the file.
    """
    sections: dict[str, dict[str, Any]] = dict(stored_facts())
    if Version(sections["transformers"]["version"]) <= Version(transformers.__version__):
        sections = {
            "transformers": {"version": transformers.__version__},
            "written": sections["written"],
            "derived": {},
            "refused": {},
        }
        for model_type in text_model_types():
            if module_name(model_type) not in module_names("families") and model_type not in sections["written"]:
                try:
                    sections["derived"][model_type] = derive(model_type)
                except CheckpointError as error:
                    sections["refused"][model_type] = str(error)
    lines = {
        section: ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(facts, ensure_ascii=False)}" for name, facts in entries.items()
        )
        for section, entries in sections.items()
    }
    return "{\n" + ",\n".join(f' "{section}": {{\n{text}\n }}' for section, text in lines.items()) + "\n}\n"


def derive(model_type: str) -> dict[str, Any]:
    """The row of a base's family, as ``families.json`` stores it
    (:func:`hf_longattn.modeling.family.definition.family_rows`).

    Raises:
        CheckpointError: the base can have no family; the message says why.
    """
    if model_type not in CONFIG_MAPPING_NAMES or model_type.startswith("long_"):
        raise CheckpointError(
            f"transformers has no model type {model_type!r}; expected one such as 'llama' or 'bert'."
        )
    if reason := REFUSED.get(model_type):
        raise CheckpointError(reason)
    config_class = CONFIG_MAPPING[model_type]
    body_class = _body_class(model_type)
    _check_text(config_class, body_class)
    config, body = _build(config_class, body_class, LENGTHS[0])
    if getattr(config, "is_heterogeneous", False):
        raise CheckpointError("its layers differ in size (`per_layer_config`)")
    two_stacks = bool(config_class.is_encoder_decoder)
    causal = _causal(config, body)
    fields = config_class.__dataclass_fields__
    facts: dict[str, Any] = {}
    if two_stacks:
        facts["config"] = "modeling.family.long_config.LongEncoderDecoderConfig"
    elif not causal and "is_decoder" not in fields:
        facts["config"] = "modeling.family.long_config.LongEncoderConfig"
    attributes: dict[str, Any] = {}
    if causal and not two_stacks and getattr(config, "is_decoder", True) is False:
        attributes["always_causal"] = True
    if getattr(config, "head_dim", 0) is None:
        attributes["writes_head_dim"] = True
    if getattr(config, "attn_logit_softcapping", None) is not None:
        attributes["score_cap"] = "attn_logit_softcapping"
    attributes |= FACTS.get(model_type, {}).get("attributes", {})
    if attributes:
        facts["attributes"] = attributes
    if any(hasattr(site.module, "qk_head_dim") for site in attention_sites(body)):
        facts["head_dim"] = (
            "qk_head_dim"  # of queries and keys in latent attention, where `head_dim` is another number
        )
    tables = list(
        _position_tables(body, dict(_build(config_class, body_class, LENGTHS[1])[1].named_parameters()), two_stacks)
    )
    if tables:
        facts["position_tables"] = tables
    elif any("rotary" in type(module).__name__.lower() for module in body.modules()):
        facts["rope"] = True
    elif model_type in WITHOUT_POSITIONS:
        facts["no_positions"] = True
    else:
        raise CheckpointError("its checkpoints have no position table, and it has no rotary positions")
    parts = (
        [] if two_stacks else [type(part).__name__ for part in body.children() if isinstance(part, PreTrainedModel)]
    )
    if parts:
        facts["inner"] = parts
    facts["classes"] = list(_model_classes(config_class))
    facts |= {name: value for name, value in FACTS.get(model_type, {}).items() if name != "attributes"}
    if {*facts["classes"]} == {*long_names(model_type, ())}:
        del facts["classes"]
    return facts


def text_model_types() -> list[str]:
    """The model types of transformers with a class that predicts tokens of a text."""
    tables = (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )
    return sorted(
        {model_type for table in tables for model_type in table if not model_type.startswith("long_")}
        & {*MODEL_MAPPING_NAMES}
    )


def _modeling(config_class: type[PreTrainedConfig]) -> Any:
    return importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))


def _body_class(model_type: str) -> type[PreTrainedModel]:
    """The base's class without a head."""
    name = MODEL_MAPPING_NAMES.get(model_type)
    body = getattr(importlib.import_module(base_package(model_type)), name, None) if isinstance(name, str) else None
    if isinstance(name, str) and body is None:
        raise CheckpointError(f"its models have the classes of another base, such as {name}")
    if not isinstance(body, type) or not issubclass(body, PreTrainedModel):
        raise CheckpointError("it has no single model class without a head")
    return body


def _check_text(config_class: type[PreTrainedConfig], body_class: type[PreTrainedModel]) -> None:
    if body_class.main_input_name != "input_ids":
        raise CheckpointError(OTHER_INPUTS)
    code = inspect.getsource(_modeling(config_class))
    if "ALL_ATTENTION_FUNCTIONS" not in code:
        raise CheckpointError(OWN_ATTENTION)


def _build(
    config_class: type[PreTrainedConfig], body_class: type[PreTrainedModel], length: int
) -> tuple[Any, nn.Module]:
    """A config of this length, and its model on the meta device. With one layer or, if that fails, the default
    number."""
    known = {*config_class.__dataclass_fields__, *config_class.attribute_map}
    usual = {"max_position_embeddings": length, "pad_token_id": PADDING, **PROBED.get(config_class.model_type, {})}
    problem: Exception | None = None
    for layers in (dict.fromkeys(LAYERS, 1), {}):
        for unset in ({}, UNSET):
            missing = {
                name: value for name, value in unset.items() if name in known and _default(config_class, name) is None
            }
            values = {name: value for name, value in {**usual, **layers}.items() if name in known}
            try:
                config = config_class(**values, **missing)
                if config.get_text_config() is not config:
                    raise CheckpointError(OTHER_INPUTS)
                with torch.device("meta"):
                    body = body_class(config)
                if attention_sites(body) or not layers:
                    return config, body
            except CheckpointError:
                raise
            except Exception as error:  # of any type, as the class raises it
                problem = problem or error
    assert problem is not None
    said = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
    raise CheckpointError(f"it cannot be built from its defaults ({said})") from problem


def _default(config_class: type[PreTrainedConfig], name: str) -> Any:
    """The default value of a config's field."""
    field = config_class.__dataclass_fields__.get(config_class.attribute_map.get(name, name))
    return None if field is None else field.default


def _causal(config: Any, body: nn.Module) -> bool:
    """Whether any self-attention layer of ``body`` is causal. CheckpointError if there is no such layer on the
    AttentionInterface."""
    sites = [site for site in attention_sites(body) if not site.cross]
    if not sites:
        raise CheckpointError("it has no attention module on transformers' AttentionInterface")
    return any(site.causal for site in sites)


def _position_tables(
    body: nn.Module, longer: Mapping[str, nn.Parameter], two_stacks: bool
) -> Iterator[dict[str, Any]]:
    """The arguments of each ``PositionTable`` that differ from its defaults."""
    modules = dict(body.named_modules())
    for name, parameter in body.named_parameters():
        if parameter.dim() != 2 or longer[name].shape[0] - parameter.shape[0] != LENGTHS[1] - LENGTHS[0]:
            continue
        module = modules[name.rpartition(".")[0]]
        padding, rows = getattr(module, "padding_idx", None), parameter.shape[0]
        own_forward = "" if type(module) is nn.Embedding else inspect.getsource(type(module).forward)
        table: dict[str, Any] = {"pattern": rf"{re.escape(name if two_stacks else '.'.join(name.split('.')[-2:]))}$"}
        if rows != LENGTHS[0]:
            table |= {"offset": rows - LENGTHS[0], "counted": False}
        elif padding == PADDING:
            table |= {"offset": "padding", "skips_padding": True}
        elif padding is not None:
            table["offset"] = padding + 1
        if "self.offset" in own_forward and "attention_mask" in own_forward:
            table |= {"added": True, "skips_padding": True}
        if "Sinusoid" in type(module).__name__ or not parameter.requires_grad:
            table["learned"] = False
        if two_stacks and name.startswith("decoder."):
            table["decoder"] = True
        yield table


def _model_classes(config_class: type[PreTrainedConfig]) -> Iterator[str]:
    """The model classes of a base that have its config."""
    modeling = _modeling(config_class)
    for name in sorted(getattr(modeling, "__all__", ())):
        value: Any = getattr(modeling, name)
        is_model = isinstance(value, type) and issubclass(value, PreTrainedModel)
        if (
            is_model
            and getattr(value, "config_class", None) is config_class
            and MODEL_NAME.search(name)
            and "pretrained" not in name.lower()
        ):
            yield name
