"""Small configs of any base architecture, for scripts and tests that want a model of every family at once.

What a small one looks like is said once, by the names that configs give their sizes: a new family whose config uses
the usual names needs nothing here. Everything that is no size stays as the architecture has it, unless it is given.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_longattn.modeling.family.definition import FAMILIES, module_name, tower_field
from hf_longattn.names import module_names
from scripts.dev import RESULTS


@dataclass(frozen=True)
class Shape:
    """The sizes of a small model; ``tokens`` is how many its position table takes."""

    width: int = 32
    layers: int = 2
    heads: int = 4
    inner: int = 48
    tokens: int = 64
    vocabulary: int = 99
    experts: int = 4

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def half(self) -> int:
        """Of the width: embeddings that are projected to it."""
        return self.width // 2

    @property
    def rotary(self) -> int:
        """The part of a head that is rotated, an even number."""
        return self.head_dim // 4 * 2

    @property
    def routed(self) -> int:
        """The experts that a token is routed to."""
        return self.experts // 2


NAMES = {
    "width": ("hidden_size", "d_model", "dim", "n_embd", "pooler_hidden_size", "word_embed_proj_dim"),
    "layers": (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
        "num_decoder_layers",
    ),
    "heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
    ),
    "inner": (
        "intermediate_size",
        "ffn_dim",
        "hidden_dim",
        "d_ff",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "moe_intermediate_size",
    ),
    "head_dim": ("head_dim", "d_kv", "query_pre_attn_scalar"),
    "half": ("embedding_size",),
    "rotary": ("rotary_dim",),
    "experts": ("num_experts", "num_local_experts"),
    "routed": ("num_experts_per_tok",),
}
"""Size -> the fields of configs that hold it."""
_STORED = json.loads((RESULTS / "derived_families.json").read_text(encoding="utf-8"))["families"]
IN_FULL = tuple(base for base in FAMILIES if base not in _STORED or module_name(base) in module_names("families"))
"""The families that every test of a family runs on. ``check_derived`` alone checks the others, which follow from
transformers."""
OF_EACH_KIND = ("bert", "llama", "bart", "t5", "layoutlm", "vit", "wav2vec2", "whisper", "clip")
"""Families of which slow tests run every check; ``run_transformers_tests`` stores the checks of all."""
TEXT_FAMILIES = {base: FAMILIES[base] for base in IN_FULL if FAMILIES[base].spec.reads == "text"}
"""The families among them whose input is tokens of a text, by their base."""
TOWER_FAMILIES = {base: FAMILIES[base] for base in IN_FULL if FAMILIES[base].towers}
"""The families of models of several towers, by their base."""
IMAGES: dict[str, Any] = {
    "num_labels": 5,
    "use_mask_token": True,
    "use_relative_position_bias": True,
    "layer_scale_init_value": 0.5,
    "layerscale_value": 0.5,
    "num_register_tokens": 3,
}
"""What models of images have whose defaults would leave a part out, or let it hardly show."""
SOUNDS: dict[str, Any] = {
    "feat_extract_norm": "layer",
    "num_labels": 5,
    "classifier_proj_size": 8,
    "num_codevector_groups": 2,
    "codevector_dim": 16,
    "proj_codevector_dim": 16,
    "xvector_output_dim": 8,
    "tdnn_dim": [16, 16, 16],
    "tdnn_kernel": [5, 3, 1],
    "tdnn_dilation": [1, 2, 1],
    "num_conv_pos_embedding_groups": 4,
    "num_codevectors_per_group": 8,
    "num_ctc_classes": 8,
    "feature_projection_input_dim": 16,
    "num_mel_bins": 16,
    "pad_token_id": 98,
    "mask_time_prob": 0.0,
    "apply_spec_augment": False,
    "ctc_zero_infinity": True,
    **dict.fromkeys(
        (
            "layerdrop",
            "dropout",
            "hidden_dropout",
            "activation_dropout",
            "attention_dropout",
            "feat_proj_dropout",
            "final_dropout",
            "conformer_conv_dropout",
        ),
        0.0,
    ),
}
"""What small models of sound have: no chance, and sizes that fit their width."""
PAGES = {"max_depth": 4, "xpath_unit_hidden_size": 4}
"""Of the paths of MarkupLM, in whose checkpoints each takes more numbers than a small model has."""
PREDICT_TOKENS = ("ForMaskedLM", "ForConditionalGeneration", "MTModel", "LMHeadModel", "ForCausalLM")
"""Endings of the classes that predict tokens, the one first that an architecture is known for."""


def language_model(base: str) -> str:
    """The model class of ``base`` that predicts tokens; its base model where none does (CLIP's text model)."""
    heads = (head for ending in PREDICT_TOKENS for head in FAMILIES[base].model_classes if head.endswith(ending))
    return next(heads, FAMILIES[base].base_model_name)


def predicts_tokens(base: str) -> bool:
    """Whether a model class of ``base`` predicts tokens."""
    return language_model(base) != FAMILIES[base].base_model_name


@functools.cache
def default_config(base: str, **values: Any) -> tuple[Any, dict[str, Any]]:
    """The config of an architecture with these values, and its fields; made once, to be read."""
    config = CONFIG_MAPPING[base](**values)
    return config, config.to_dict()


def named_sizes(fields: Mapping[str, Any], shape: Shape, others: Mapping[str, str] = {}) -> dict[str, Any]:
    """The sizes of a shape, by those of a config's fields that hold one.

    Args:
        others: further names of sizes, as in :data:`NAMES`: field -> size.
    """
    named = {name: size for size, names in NAMES.items() for name in names} | dict(others)
    return {name: getattr(shape, size) for name, size in named.items() if isinstance(fields.get(name), int)}


def small_values(base: str, shape: Shape = Shape(), **others: Any) -> dict[str, Any]:
    """Arguments for the config of ``base``, or for its Long config.

    Args:
        base: transformers' model type, of a family.
        shape: the sizes.
        others: values of further fields, of which those are taken that the architecture has.
    """
    default, fields = default_config(base, **{name: value for name, value in others.items() if name == "pad_token_id"})
    heads = default.num_attention_heads
    sizes = named_sizes(fields, shape, FAMILIES[base].sizes)
    if isinstance(grouped := fields.get("num_key_value_heads"), int):
        sizes["num_key_value_heads"] = shape.heads if grouped == heads else shape.heads // 2
    sizes |= {name: size for name, size in PAGES.items() if name in fields}
    sizes["vocab_size"] = shape.vocabulary
    table = next(iter(FAMILIES[base].position_tables), None)
    # T5's checkpoints have it, its config class not
    length = "n_positions" if FAMILIES[base].relative else "max_position_embeddings"
    sizes[length] = shape.tokens if table is None else table.config_value(shape.tokens, default)
    known = {*fields, *default.attribute_map, *(("decoder_start_token_id",) if default.is_encoder_decoder else ())}
    return {**sizes, **{name: value for name, value in others.items() if name in known}}


def small_config(base: str, shape: Shape = Shape(), **others: Any) -> Any:
    """The config of a base, of these sizes; arguments as :func:`small_values`."""
    return CONFIG_MAPPING[base](**small_values(base, shape, **others))


def small_image_config(base: str, shape: Shape = Shape(), patch: int = 4, side: int = 8, **values: Any) -> Any:
    """The config of a base that reads images: ``side`` patches of ``patch`` pixels along each axis.

    Args:
        values: values of further fields, of which those are taken that the architecture has.
    """
    fields = CONFIG_MAPPING[base]().to_dict()
    sizes = named_sizes(fields, shape)
    sizes |= {
        "patch_size": patch,
        "image_size": patch * side,
        "num_patches": side * side,
        "projection_dim": shape.half,
    }
    sizes |= {"encoder_stride": patch, "out_indices": list(range(1, min(4, shape.layers) + 1))}
    known = {**fields, "num_labels": 0, "out_indices": 0}
    return CONFIG_MAPPING[base](
        **{name: value for name, value in {**sizes, **IMAGES, **values}.items() if name in known}
    )


def small_towers_config(base: str, shape: Shape = Shape(), **values: Any) -> Any:
    """The config of a base of several towers, each of these sizes, whose outputs are of one width.

    Args:
        values: values of further fields of the towers, of which those are taken that a tower has.
    """
    towers = {}
    for name, family in FAMILIES[base].towers.items():
        small = small_config if family.spec.reads == "text" else small_image_config
        config = small(
            family.base_model_type, shape, **{"projection_dim": shape.half, "projection_size": shape.width, **values}
        )
        towers[tower_field(name)] = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    known = CONFIG_MAPPING[base]().to_dict()
    return CONFIG_MAPPING[base](**towers, **({"projection_dim": shape.half} if "projection_dim" in known else {}))


def small_audio_config(base: str, shape: Shape = Shape(), **values: Any) -> Any:
    """The config of a base that reads sound, in which a frame takes 400 samples and the next one starts 320 later, as
    in the large models, without dropout; every frame is computed from its own samples alone.

    Args:
        values: values of further fields, of which those are taken that the architecture has.
    """
    fields = CONFIG_MAPPING[base]().to_dict()
    sizes = named_sizes(fields, shape)
    if "conv_dim" in fields:
        sizes["conv_dim"] = [shape.half] * len(fields["conv_dim"])
    sizes |= {"vocab_size": shape.vocabulary, "num_feat_extract_layers": len(fields.get("conv_dim", ()))}
    known = {**fields, "num_labels": 0}
    return CONFIG_MAPPING[base](
        **{name: value for name, value in {**sizes, **SOUNDS, **values}.items() if name in known}
    )
