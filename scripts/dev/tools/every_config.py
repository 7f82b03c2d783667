"""Small configs of every model type of transformers, and inputs for their models.

Sizes follow from the names of a config's fields. What cannot be derived stands by model type in ``every_config.json``.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Generator, Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hf_longattn.conversion.seeded_inputs import seeded_inputs

TOKENS, WIDTH, HEADS, HEAD_DIM, VOCABULARY, WINDOW = 24, 64, 4, 16, 200, 4
KV_HEADS = re.compile(r".*(num_key_value_heads|num_kv_heads|n_kv_heads|multi_query_group_num)")
WINDOWS = re.compile(
    r"(.*_)?(sliding_window|sliding_window_size|attention_chunk_size|local_attention|attention_window|attention_window_size)"
)
SIZES = {
    r"num_feat_extract_layers|num_channels|in_channels|in_chans|audio_channels|channels|.*axial.*": None,
    r"(.*_)?vocab_size.*|.*_vocabulary_size": VOCABULARY,
    r"(.*_)?codebook_size": 64,
    r".*(head_dim|d_kv|attention_head_size|attention_key_size|dim_head|d_head)": HEAD_DIM,
    r".*(query_pre_attn_scalar|lora_rank)": HEAD_DIM,
    r".*(num_attention_heads|n_heads?|num_heads|attention_heads|num_head)(_alternative)?": HEADS,
    r".*(num_hidden_layers|n_layers?|num_layers|_layers|depth|num_blocks)": 2,
    r".*(n_positions|max_position_embeddings|max_seq_len|max_positions|n_ctx|max_sequence_length)": 128,
    r".*(source_positions|target_positions)": 128,
    r"num_position_embeddings": 128,
    r".*(intermediate_size|ffn_dim|ffn_size|d_ff|d_inner|n_inner|mlp_dim|dim_feedforward)": WIDTH,
    r".*(feed_forward.*|out_hidden_size)": WIDTH,
    r".*(hidden_size|d_model|n_embd|hidden_dim|embedding_size|width|projection_size|dimension|_channels|dim)": WIDTH,
    r"num_filters": 8,
    r"num_conv_pos_embeddings": 16,
    r"(.*_)?(num_experts|num_local_experts|n_routed_experts|n_experts|num_codebooks|num_quantizers)": 4,
    r"(.*_)?(num_experts_per_tok|moe_topk|moe_k|num_experts_per_token|top_k|top_k_experts|index_topk)": 2,
    r"upsample_groups|encoder_hash_byte_group_vocab": 16,
    r"n_group|topk_group|n_groups|first_k_dense_replace|mamba_n_groups|num_groups": 1,
    r"(.*_)?(image_size|img_size)": 32,
    r"(.*_)?patch_size": 4,
}
"""Names of fields with a number -> the largest value of a small model."""
LISTS: dict[str, Callable[[int], int]] = {
    r"depths|num_block_repeats|stage_num_blocks|blocks_per_stage": lambda place: 1,
    r".*num_(attention_)?heads.*": lambda place: 2 ** min(place, 2),
    r".*(hidden_sizes|embed_dims?)": lambda place: 16 * 2 ** min(place, 2),
    r"conv_dim": lambda place: 16,
}
"""Names of fields with a list of numbers -> the value of an entry by its place."""
UNSET = {
    "head_dim": HEAD_DIM,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "top_k_experts": 2,
    "moe_intermediate_size": WIDTH,
    "vocab_size": VOCABULARY,
    "sliding_window": WINDOW,
}
"""Values of fields that a config class leaves unset."""
SPECIAL = ("pad", "bos", "eos", "sep", "cls", "unk", "decoder_start")
"""Special tokens, by their ids in a small vocabulary. Tokens of images and sounds come after the 100 ids of texts."""


TABLES = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
VALUES, INPUTS = (
    {name: value for names, value in TABLES[table].items() for name in names.split()} for table in ("values", "inputs")
)
"""Model type -> values without which a small model cannot be built or run; further arguments of its models, as in
:data:`MAKERS`."""


def model_types() -> list[str]:
    """Every model type of transformers."""
    return sorted(name for name in CONFIG_MAPPING_NAMES if not name.startswith("long_"))


def small_config(model_type: str, **values: Any) -> PreTrainedConfig:
    """The default config of a model type, with small sizes, windows of :data:`WINDOW` keys, and ``values`` of other
    fields."""
    return _shrunk(CONFIG_MAPPING[model_type](), {**values, **VALUES.get(model_type, {})})


def _shrunk(config: PreTrainedConfig, others: dict[str, Any]) -> PreTrainedConfig:
    values = _small_values(config)
    with contextlib.suppress(Exception):  # some have no defaults of their own
        if getattr(config, "out_features", None) != getattr(type(config)(), "out_features", None):
            values |= (
                {"out_indices": [1, 2]}
                if hasattr(config, "num_hidden_layers")
                else {"out_features": config.out_features}
            )
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), PreTrainedConfig):
            values[name] = _shrunk(part, VALUES.get(part.model_type, {})).to_dict()
    return type(config)(**{**values, **others})


def _small_values(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that differ from ``config`` in a small config of its class, without those of its parts."""
    values: dict[str, Any] = {}
    fields = {
        name: value
        for name, value in config.to_dict().items()
        if name not in config.sub_configs and name != "qk_head_dim"
    }
    heads = next(
        (fields[name] for name in ("num_attention_heads", "n_head", "num_heads") if isinstance(fields.get(name), int)),
        None,
    )
    special = 100
    for name, value in fields.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value is None and name in UNSET and name in type(config).__dataclass_fields__:
            values[name] = UNSET[name]
        elif whole and KV_HEADS.fullmatch(name):
            values[name] = HEADS if value == heads else min(value, HEADS // 2)
        elif whole and value >= 10 and re.fullmatch(r".*_token_(id|index)", name):
            usual = name.rpartition("_token_")[0]
            values[name] = SPECIAL.index(usual) if usual in SPECIAL else (special := special + 1)
        elif whole:
            size = (
                WINDOW
                if WINDOWS.fullmatch(name)
                else next((size for words, size in SIZES.items() if re.fullmatch(words, name)), None)
            )
            if size is not None and value > size:
                values[name] = size
        elif name == "eos_token_id" and value:
            values[name] = 2
        elif isinstance(value, list) and value and all(type(part) is int for part in value):
            of_place = next((of_place for words, of_place in LISTS.items() if re.fullmatch(words, name)), None)
            if of_place is not None:
                values[name] = [of_place(place) for place in range(len(value))]
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict) and "mrope_section" in value:
            values[name] = {**value, "mrope_section": [2, 3, 3]}
    if isinstance(kinds := fields.get("layer_types"), list) and kinds:
        kinds = [*dict.fromkeys(kinds)]
        if kinds == ["full_attention"] and "sliding_window" in fields:
            kinds = ["sliding_attention", "full_attention"]
            values |= {"sliding_window": WINDOW} | (
                {"use_sliding_window": True} if "use_sliding_window" in fields else {}
            )
        values["layer_types"] = kinds * max(1, 2 // len(kinds))
        values["num_layers" if "num_layers" in fields else "num_hidden_layers"] = len(values["layer_types"])
    return values


def windowless(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """The config with windows that hide nothing, also those of its parts. ``None`` if it has no windows."""
    fields, changes = config.to_dict(), {}
    for name, value in fields.items():
        if isinstance(value, int) and value == WINDOW and WINDOWS.fullmatch(name):
            changes[name] = 1000
        elif name in config.sub_configs and value and (part := windowless(getattr(config, name))) is not None:
            changes[name] = part.to_dict()
    return type(config)(**{**fields, **changes}) if changes else None


def model_class(model_type: str) -> type[PreTrainedModel] | None:
    """The class of a model type without a head. ``None`` for the config of a part without a model class."""
    names = MODEL_MAPPING_NAMES.get(model_type, ())
    config_class = CONFIG_MAPPING[model_type]
    for name in (names,) if isinstance(names, str) else names:
        if (found := getattr(transformers, name, None)) is not None:
            return found
    try:
        modeling = importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))
    except ImportError:
        return None
    kinds = [
        value for value in vars(modeling).values() if isinstance(value, type) and issubclass(value, PreTrainedModel)
    ]
    kinds = [
        kind
        for kind in kinds
        if kind.__module__ == modeling.__name__ and getattr(kind, "config_class", None) is config_class
    ]
    kinds = [kind for kind in kinds if getattr(kind, "forward", None) is not torch.nn.Module.forward]
    return min(kinds, key=lambda kind: ("For" in kind.__name__, len(kind.__name__)), default=None)


# Inputs beside texts


def images(config: Any, random: Generator) -> Tensor:
    """An image of the config's size."""
    parts = (getattr(config, name, None) for name in ("vision_config", "backbone_config", "encoder"))
    vision = next((part for part in parts if part is not None), config)
    channels = next(
        (
            value
            for name in ("num_channels", "in_channels", "in_chans")
            if isinstance(value := getattr(vision, name, None), int)
        ),
        3,
    )
    size = getattr(config, "image_size", None) or getattr(vision, "image_size", None) or 32
    return torch.randn(1, channels, *((size, size) if isinstance(size, int) else size), generator=random)


def frames(config: Any, random: Generator) -> Tensor:
    """A video."""
    return images(config, random)[:, None].repeat(
        1, getattr(getattr(config, "vision_config", config), "num_frames", 4), 1, 1, 1
    )


def patches(config: Any, random: Generator) -> Tensor:
    """The patches of two images, of 8 × 8 and 4 × 8."""
    channels = getattr(config, "in_channels", getattr(config, "num_channels", 3))
    return torch.randn(
        96, channels * (getattr(config, "temporal_patch_size", 1) or 1) * config.patch_size**2, generator=random
    )


def flattened(config: Any, random: Generator) -> Tensor:
    """Patches behind their rows and columns, as in Pix2Struct."""
    width = getattr(config, "vision_config", config).patch_embed_hidden_size
    return torch.cat([torch.arange(1, 33).view(1, 16, 2), torch.randn(1, 16, width, generator=random)], -1)


def sound(config: Any, random: Generator) -> Tensor:
    """The features of 64 moments of sound."""
    part = next(
        (part for name in ("audio_config", "encoder_config") if (part := getattr(config, name, None)) is not None),
        config,
    )
    names = ("num_mel_bins", "feature_size", "input_feat_per_channel", "input_dim")
    return torch.randn(
        1, next(value for name in names if isinstance(value := getattr(part, name, None), int)), 64, generator=random
    )


MAKERS: dict[str, Any] = {
    "pixel_values": images,
    "image": images,
    "pixel_values_videos": frames,
    "hidden_states": patches,
    "flattened_patches": flattened,
    "grid_thw": {"tensor": [[1, 8, 8], [1, 4, 8]]},
    "image_grid_thw": {"tensor": [[1, 8, 8], [1, 4, 8]]},
    "merge_sizes": {"tensor": [2, 2]},
    "input_ids": {"tokens": [1, TOKENS]},
    "query_embeds": [1, 8, WIDTH],
    "input_values": [1, 1, 4000],
    "latents": [1, "hidden_size", 20],
    "input_features": sound,
    "input_features_mask": {"full": [1, 1, 64]},
}
"""Name of an argument -> what makes it for a config, or a description as :func:`_made` reads it."""


def _made(description: Any, config: Any, random: Generator) -> Tensor:
    """An argument: random numbers of a shape, in which a name is a field of the config; tokens; a value in a shape; or
    a tensor."""
    if callable(description):
        made: Tensor = description(config, random)
        return made
    if isinstance(description, str):
        return _made(MAKERS[description], config, random)
    if isinstance(description, list):
        return torch.randn(
            [getattr(config, size) if isinstance(size, str) else size for size in description], generator=random
        )
    [(kind, values)] = description.items()
    if kind == "tokens":
        return torch.randint(10, 60, values, generator=random)
    return torch.full(values[1:], values[0]) if kind == "full" else torch.tensor(values)


def other_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """The arguments of one forward pass with images, sounds or series: what the package makes, and those of the tables
    above."""
    config, taken, random = model.config, inspect.signature(type(model).forward).parameters, Generator().manual_seed(0)
    inputs: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        inputs = seeded_inputs(model)
    further = dict(INPUTS.get(config.model_type, {}))
    required = {
        name
        for name, value in taken.items()
        if value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD
    }
    on_grid = bool(required & {"grid_thw", "image_grid_thw"})
    optional = {
        name for name in (model.main_input_name, "input_features_mask") if isinstance(name, str) and name in taken
    }
    for name in sorted((required | optional) & MAKERS.keys() - further.keys()):
        if (name not in inputs or on_grid) and not (name == "input_ids" and "inputs_embeds" in further):
            further[name] = MAKERS["hidden_states" if on_grid and name == "pixel_values" else name]
    inputs |= {name: _made(description, config, random) for name, description in further.items()}
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
