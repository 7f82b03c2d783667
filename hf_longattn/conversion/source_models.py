"""Sources of conversions: open a checkpoint, find its model classes before and after, load it with either, and run
it."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ..configuration import LongAttentionConfig
from ..errors import BackendError, CheckpointError, OptionError, checkpoint_errors, in_a_line, nearest
from ..files import (
    FORMAT_FIELD,
    MODULES,
    PICKLED_WEIGHTS,
    SAFETENSORS,
    is_long,
    named_class,
    read_json_object,
    sentence_modules,
)
from ..inputs.modality import Modality, modality_of
from ..inputs.running import seeded
from ..loading import (
    LAYER,
    LOADING,
    WEIGHTS,
    fetch_model,
    load_weights,
    no_weights,
    read_config,
    refuse_adapter,
    tied_weights,
)
from ..mechanisms import Mechanism
from ..modeling.attach.memory_tokens import MemoryTokens
from ..modeling.classes import check_interface
from ..modeling.family.definition import (
    CAUSAL_LANGUAGE_MODELS,
    FAMILIES,
    Family,
    known_family,
    stored_facts,
    tower_field,
)
from ..modeling.family.registration import MULTIMODAL_TYPE, auto_class_name, quiet_torchao
from ..modeling.family.sliding_window import with_base_windows
from ..modeling.generic import check_class, family_in, plain_family
from ..modeling.pruning import KEPT_HEADS
from ..positions.rope import RopePlan
from ..positions.tables import DROPPED, extends_learned
from .adopt import ADOPTIONS, Adoption, decoder_start
from .settings import ConversionConfig

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Names of floating-point types in safetensors files -> the dtypes."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Source:
    """An opened checkpoint."""

    name: str  # as the user typed it
    folder: Path  # has config, tokenizer and weights (no weights if only a plan is made)
    config: dict[str, Any]  # its config.json
    pickled: bool = False  # whether transformers reads the weights from .bin files
    root: Path | None = None  # sentence-transformers folder around this model; None for other checkpoints
    # tensor name -> dtype, of floating-point tensors only; empty for .bin files and plans
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)

    @property
    def card_folder(self) -> Path:
        """The outermost folder of the source, with its README.md."""
        return self.root or self.folder


def tower_of(source: Source, name: str, class_name: str) -> Source:
    return replace(source, config={**(source.config.get(tower_field(name)) or {}), "architectures": [class_name]})


def open_source(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    *,
    weights: bool = True,
    allow_pickle: bool = False,
) -> Source:
    """Open a checkpoint, and read its config.

    Refuses one that is missing, unreachable or damaged, an adapter, and one without config. If weights are needed,
    also a quantised one.

    Args:
        source: a folder, or a Hub repository id, which is downloaded into the Hub cache.
        weights: whether the weights are needed; a plan needs the config alone.
        allow_pickle: whether .bin files are read where there are no safetensors. Only tensors are read from them.
    """
    name = str(source)
    path = fetch_model(source, revision, token, weights=[SAFETENSORS] * weights)
    if weights and allow_pickle and path != Path(source).expanduser() and not any(path.glob(SAFETENSORS)):
        path = fetch_model(source, revision, token, weights=[PICKLED_WEIGHTS])
    root, folder = None, path
    if (path / MODULES).is_file():
        root, first = path, sentence_modules(path)[0]
        if not first["type"].endswith(".Transformer"):
            raise CheckpointError(
                f"{str(root)!r} begins with a {first['type']!r}, but only models whose first module is Transformer "
                "can be converted; give another."
            )
        folder = root / first["path"]
    refuse_adapter(folder, name)
    config = read_config(folder)
    if weights and "long_attention" not in config:  # a quantised long checkpoint can be loaded
        refuse_quantised(Source(name, folder, config))
    pickled = weights and not any((folder / file).is_file() for file in WEIGHTS)
    dtypes = _checked_dtypes(folder) if weights and not pickled else {}
    if pickled and not (allow_pickle and any(folder.glob(PICKLED_WEIGHTS))):
        raise CheckpointError(no_weights(name, folder))
    return Source(name, folder, config, pickled, root, dtypes)


def tensor_headers(folder: Path) -> Iterator[tuple[Path, str, str, tuple[int, ...]]]:
    """File, name, dtype (such as "F32") and shape of each tensor in safetensors files. A damaged file is left out;
    loading refuses it."""
    for path in folder.glob(SAFETENSORS):
        with contextlib.suppress(SafetensorError), safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                part = tensors.get_slice(name)
                yield path, name, part.get_dtype(), tuple(part.get_shape())


def _checked_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtypes of floating-point tensors in the files that transformers reads, by name.

    Refuses files that transformers does not check: an index that points outside its folder or to pickles, Git LFS
    pointers, and integers.
    """
    single = folder / WEIGHTS[0]
    dtypes: dict[str, torch.dtype] = {}
    if not single.is_file():
        shards = read_json_object(folder / WEIGHTS[1]).get("weight_map")
        for file in shards.values() if isinstance(shards, dict) and shards else [None]:
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"The index {str(folder / WEIGHTS[1])!r} must map tensors to .safetensors files of the same "
                    "folder, and not to "
                    f"{file!r:.99}; download it again."
                )
    for path in folder.glob(SAFETENSORS):
        with open(path, "rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise CheckpointError(
                    f"{str(path)!r} is a pointer of Git LFS and not the weights; type `git lfs pull` in its folder."
                )
    for path, name, dtype, _ in tensor_headers(folder):
        if name.endswith("weight") and dtype not in DTYPES:
            raise CheckpointError(
                f"Tensor {name!r} of {str(path)!r} holds {dtype} numbers, and its model has none of these; give the "
                "checkpoint that it was quantised from."
            )
        if dtype in DTYPES and (path == single or not single.is_file()):
            dtypes[name] = DTYPES[dtype]
    return dtypes


def refuse_quantised(source: Source) -> None:
    """Raise :class:`CheckpointError` if a checkpoint was quantised: packed weights can be neither extended nor
    compared."""
    if settings := source.config.get("quantization_config") or source.config.get("compression_config"):
        method = settings.get("quant_method") if isinstance(settings, Mapping) else None
        raise CheckpointError(
            f"{source.name!r} holds quantised weights ({method or 'an unnamed method'}), which can only be loaded; "
            "give the checkpoint that it was quantised from."
        )


NAMES = ("model_type", "architectures", "transformers_version", "_name_or_path", "auto_map")
"""Fields of a config that identify its model."""
OWN_FIELDS = (
    FORMAT_FIELD,
    "long_attention",
    "decoder_long_attention",
    "position_extension",
    "question_separator_id",
    "global_token_ids",
    "max_decoder_position_embeddings",
    "long_image_size",
    "long_audio_seconds",
    "extended_from",
    KEPT_HEADS,
)
LISTED = (
    'Long classes have {} types, which python -c "from hf_longattn.families import FAMILIES; print(*FAMILIES)" lists.'
)


@dataclass
class Architecture:
    """The family of a source, and its model class before and after the conversion.

    Attributes:
        modality: the kind of input that the source reads.
        model_class: the Long class.
        encoder_decoder: whether the source has both an encoder and a decoder.
        decoder_reads_text: whether the head feeds the whole text to the decoder, so the decoder must be as long as the
            encoder.
    """

    family: Family
    source_config: Any  # the family's base config with the source's values
    source_class: str  # "BertForQuestionAnswering"
    long_class: str  # "LongBertForQuestionAnswering"
    converter: Adoption | None = None  # for a source of a long stock architecture, such as Longformer
    original_config: Any = None  # the source's own config, if there is a converter
    original_attention: LongAttentionConfig | None = None  # equals the attention of this source

    def __post_init__(self) -> None:
        self.modality: Modality = modality_of(self.family)
        self.model_class: type[nn.Module] = self.family.model_class(self.long_class)
        self.encoder_decoder = self.family.has_encoder(self.long_class) and self.family.has_decoder(self.long_class)
        heads_that_read = ("ForQuestionAnswering", "ForSequenceClassification")
        self.decoder_reads_text = self.encoder_decoder and self.long_class.endswith(heads_that_read)

    def long_config(
        self,
        attention: LongAttentionConfig | None,
        decoder_attention: LongAttentionConfig | None = None,
        lengths: Mapping[str, Any] = MappingProxyType({}),
        rope: RopePlan | None = None,
        strategy: str = "tile",
    ) -> Any:
        """The config of the result: the source's values, the attention (``None`` for the default), and the new
        positions.

        New positions: fields with ``lengths``, and ``rope`` for rotary positions or ``strategy`` for extending
        position tables.
        """
        values = self.source_config.to_dict()
        if self.family.relative:
            values["max_position_embeddings"] = self.family.base_length(self.source_config)
        values = {name: value for name, value in values.items() if name not in NAMES}
        stacks = {"long_attention": attention, "decoder_long_attention": decoder_attention}
        chosen = {name: stack.to_dict() for name, stack in stacks.items() if stack is not None}
        with checkpoint_errors(f"The source's config makes no valid {self.long_class}"):
            config = self.family.config_class.from_dict({**values, **chosen})
        for name, value in lengths.items():
            setattr(config, name, value)
        if rope is not None:
            rope.write(config)
        elif strategy in DROPPED:
            config.position_extension = "none"
        else:
            config.position_extension = strategy if extends_learned(strategy) else "tile"
        config.architectures = [self.long_class]
        result = with_base_windows(config.to_dict())
        config.extended_from = {
            name: value
            for name, value in values.items()
            if name not in (*OWN_FIELDS, "dtype") and result.get(name, ...) != value
        }
        return config

    def skeleton(self, config: Any) -> nn.Module:
        """The long model on the meta device, for tensor names and shapes. Refuses a config that contradicts itself."""
        with (
            checkpoint_errors(f"The source's config makes no valid {self.source_class}"),
            LOADING,
            torch.device("meta"),
        ):
            return self.model_class(config)


def find_architecture(source: Source, request: ConversionConfig) -> Architecture:
    """The family and classes for a source. With the setting ``generic``, its plain transformers class.

    Refuses a source that is unsupported, already converted or inconsistent, and settings that do not apply to it.
    """
    model_type = source.config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"The config.json of {source.name!r} has no model_type; it was not saved by transformers."
        )
    if is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is already a long checkpoint ({model_type}); convert the short one that it was "
            "converted from."
        )
    if model_type in ("siglip2", "siglip2_vision_model"):
        raise CheckpointError(
            f"{source.name!r} reads images of different sizes in one batch (NaFlex), which mechanisms do not; load it "
            'with attn_implementation="longattn", or convert a SigLIP 2 for images of one size, such as '
            "google/siglip2-base-patch16-224."
        )
    architecture = (_plain_architecture if request.generic else _long_architecture)(source, model_type)
    refuse_quantised(source)
    architecture.modality.check_settings(architecture, request)
    return architecture


def _long_architecture(source: Source, model_type: str) -> Architecture:
    converter = ADOPTIONS.get(model_type)
    if converter is None and model_type not in FAMILIES:
        known = sorted({*FAMILIES, *ADOPTIONS})
        meant = "" if class_of(source.config) is not None else nearest(model_type, known)
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, {generic_hint(source)}; {LISTED.format(len(known))}{meant}"
        )
    family = FAMILIES[model_type if converter is None else converter.family]
    source_class = named_class(source.config, MODEL_MAPPING_NAMES[model_type] if converter else family.base_model_name)
    original = attention = None
    values = dict(source.config)
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        if converter is not None:
            original = AutoConfig.for_model(**source.config)
            values, attention = converter.settings(original, source_class)
            values = {name: value for name, value in values.items() if name not in NAMES}
        config = family.base_config_class.from_dict(values)
    if getattr(config, "is_heterogeneous", False):
        raise CheckpointError(
            f"The config.json of {source.name!r} has per_layer_config: its layers differ in size, which no Long class "
            "supports; give a checkpoint whose layers have equal sizes, with different windows only by layer_types."
        )
    stem, base_stem = ("", "") if converter is None else converter.stems
    base_class = source_class.replace(stem, base_stem, 1) if source_class.startswith(stem) else ""
    check_class(source.name, source.folder, source.config, allow_pickle=source.pickled)
    if base_class not in family.model_classes:
        names = (base.replace(base_stem, stem, 1) for base in family.model_classes)
        classes = [name for name in names if hasattr(transformers, name)]
        raise CheckpointError(
            f"{source.name!r} names the class {source_class!r:.99}, which is not supported; the supported "
            f"{model_type} classes are {', '.join(classes)}."
        )
    return Architecture(family, config, source_class, family.model_classes[base_class], converter, original, attention)


def _plain_architecture(source: Source, model_type: str) -> Architecture:
    family, base = FAMILIES.get(model_type), class_of(source.config)
    if family is not None and not modality_of(family).tower_names:
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, which has Long classes; leave --generic out."
        )
    if base is None:
        raise CheckpointError(
            f"{source.name!r} names no class of transformers {transformers.__version__} in its config.json; set "
            "architectures to one."
        )
    check_interface(base)
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        config: Any = AutoConfig.for_model(**dict(source.config))
    check_class(source.name, source.folder, source.config, allow_pickle=source.pickled)
    plain = plain_family(config.__class__)
    return Architecture(plain, config, base.__name__, plain.model_classes[base.__name__])


def generic_hint(source: Source) -> str:
    """What to do with a source without Long classes, as a relative clause for a message."""
    base, why = class_of(source.config), stored_facts()["refused"].get(source.config["model_type"])
    if base is None:
        return f"which is not supported: transformers {transformers.__version__} has no class of this type"
    try:
        check_interface(base)
    except BackendError:
        reason = f"{base.__name__} does not take its attention from transformers' AttentionInterface"
        return f"which has no Long classes, not even with --generic, since {reason}"
    if {"window_size", "depths"} <= source.config.keys():  # Swin: a mechanism would run inside each of its windows
        return (
            "which has no Long classes, and needs none: it attends within windows, so larger images already cost "
            "little"
        )
    reason = f", since {why}" if why else ""
    return f"which has no Long classes{reason}; --generic may add mechanisms to its plain class"


def class_of(config: Mapping[str, Any]) -> type[PreTrainedModel] | None:
    """The transformers class that a ``config.json`` names, or the headless class of its model type. ``None`` if
    neither exists."""
    model_type = str(config.get("model_type"))
    model_class: Any = getattr(transformers, named_class(config, str(MODEL_MAPPING_NAMES.get(model_type))), None)
    if not isinstance(model_class, type) or not issubclass(model_class, PreTrainedModel):
        return None
    config_class = getattr(model_class, "config_class", None)
    return model_class if getattr(config_class, "model_type", None) == model_type else None


def read_long(source: Source) -> tuple[Any, str, Family, Any]:
    """Config, class name, family and skeleton of a long checkpoint. Refuses an unknown model type and an invalid
    config."""
    model_type = str(source.config.get("model_type"))
    family = family_in(source.config) if model_type.startswith("long_") else None
    if model_type == MULTIMODAL_TYPE:
        raise CheckpointError(
            f"{source.name!r} is a multitask model with several kinds of input, which this command does not read; "
            "load it with AutoModel and a head with hf_longattn.training.load_multitask_head, or give the model that "
            "it was trained from."
        )
    if family is None:
        listed = LISTED.format(len(FAMILIES)) + nearest(model_type, [f"long_{base}" for base in FAMILIES])
        raise CheckpointError(f"{source.name!r} is a {model_type!r} model, which is not supported; {listed}")
    with checkpoint_errors(f"The config.json of {source.name!r} is not valid for {model_type}"):
        config = family.config_class.from_dict(dict(source.config))
    check_class(source.name, source.folder, source.config)
    named = named_class(source.config, "none")
    if named not in family.model_classes.values():
        raise CheckpointError(
            f"{source.name!r} names the class {named!r}; expected one of {', '.join(family.model_classes.values())}."
        )
    with (
        checkpoint_errors(f"The config.json of {source.name!r} makes no valid {named}"),
        LOADING,
        torch.device("meta"),
    ):
        return config, named, family, family.model_class(named)(config)


def result_class(architecture: Architecture, config: Any) -> Any:
    """The class for loading a result with this config: the Auto class of its head, or its Long class if there is
    none."""
    name = auto_class_name(config, architecture.long_class)
    return getattr(transformers, name) if name else architecture.model_class


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}


def added_modules(model: nn.Module) -> tuple[str, ...]:
    """Name prefixes of the parameters that mechanisms and memory tokens add to the base."""
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Mechanism | MemoryTokens))


def chosen_device(name: str | None) -> torch.device:
    """The device called ``name``, or :class:`OptionError`; for ``None`` the accelerator, or the CPU if there is
    none."""
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(
            f"There is no device {name!r:.40} here ({in_a_line(error, 120)}); leave --device out."
        ) from error


def source_class(architecture: Architecture) -> Any:
    """transformers' class of a source."""
    family, name = architecture.family, architecture.source_class
    return family.base_class(name) if name in family.model_classes else getattr(transformers, name)


def load_source(
    source: Source, architecture: Architecture, dtype: torch.dtype | str = torch.float32
) -> tuple[Any, set[str]]:
    """Load the source with its class of transformers, as :func:`load_checked` does. Parameters that it lacks are
    random."""
    # SDPA ignores a cap of the scores; transformers before 5.23 selects it nevertheless
    arguments: dict[str, Any] = {}
    if architecture.family.config_class.score_cap is not None:
        arguments["attn_implementation"] = "eager"
    return load_checked(
        source_class(architecture),
        source.folder,
        source.name,
        headless=True,
        allow_pickle=source.pickled,
        dtype=dtype,
        **arguments,
    )


def load_as_result(
    source: Source, architecture: Architecture, config: Any, dtype: torch.dtype | None = torch.float32
) -> tuple[Any, set[str]]:
    """Load the source with the class and the config of a result, as users do. Loading extends its position tables.

    Returns what :func:`load_checked` does. New parameters of mechanisms have the same values at every call.

    Args:
        dtype: dtype of all weights. ``None`` keeps each tensor's dtype, even if config.json names another.
    """
    stored: Mapping[str, torch.dtype] = {}
    loaded: Any = dtype
    if dtype is None:
        stored = source.dtypes
        loaded = functools.reduce(torch.promote_types, stored.values()) if stored else "auto"
    model_class = result_class(architecture, config)
    folder: Path | None = source.folder
    arguments: dict[str, Any] = {"dtype": loaded, "allow_pickle": source.pickled}
    if architecture.converter is not None:
        original, lacking = load_source(source, architecture, loaded)
        random = {value.data_ptr() for name, value in original.state_dict().items() if name in lacking}
        tensors = architecture.converter.state_dict(original)
        state = {name: value for name, value in tensors.items() if value.data_ptr() not in random}
        model_class, folder = architecture.model_class, None
        arguments = {"dtype": original.dtype, "state_dict": state}
    with seeded():
        model, missing = load_checked(model_class, folder, source.name, headless=True, config=config, **arguments)
    # Files may lack heads that are then trained, but not the untied head of a class that generates text, nor a part of
    # the head of a model of tokens.
    head = model.get_output_embeddings()
    names = [name for name, value in model.named_parameters() if head is not None and value is head.weight]
    head_parameters = {
        name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")
    }
    generates = type(model).__name__.endswith((*CAUSAL_LANGUAGE_MODELS, "ForConditionalGeneration"))
    if {*names} & missing and (generates or head_parameters - missing):
        named, headless = named_class(source.config, ""), MODEL_MAPPING_NAMES.get(source.config["model_type"])
        raise CheckpointError(
            f"{source.name!r} has no {names[0]}, the head of a {named}, and its config.json does not tie the head to "
            f'the embeddings; write "tie_word_embeddings": true there if they are the head, or "architectures": '
            f'["{headless}"] for the model without a head.'
        )
    for name, value in model.named_parameters():
        value.data = value.data.to(stored.get(name, value.dtype))
    return model, missing


def load_checked(
    model_class: Any, folder: Path | None, name: str, *, headless: bool = False, **arguments: Any
) -> tuple[Any, set[str]]:
    """Load a model in evaluation mode, and check that its files have all weights. Also returns the names of missing
    parameters.

    Without weights, a pooler would be random. It is removed from a model without a head.

    Args:
        folder: folder of the files; ``None`` if ``arguments`` have a state_dict. If ``arguments`` have a config,
            mechanisms may have new parameters.
        headless: whether weights of the head may be missing.
    """
    try:
        model, info = load_weights(
            model_class,
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **arguments,
        )
    except CheckpointError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise CheckpointError(
                f"The .bin files of {name!r} hold more than tensors, which is never read."
            ) from error
        raise
    for tensor, stored, expected in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"Tensor {tensor!r} of {name!r} has the shape {tuple(stored)}, but its config requires {tuple(expected)}."
        )
    missing = {*info["missing_keys"]}
    if "config" in arguments:
        missing = {tensor for tensor in missing if not tensor.startswith(added_modules(model))}
    missing -= {tensor for tensor, other in tied_weights(model).items() if other not in missing}
    needed, prefix = missing, f"{model.base_model_prefix}."
    if headless:  # weights of the head and computed tables may be missing
        needed = missing - {*tied_weights(model)}
        family = known_family(model.config)
        if family is not None:
            tables = {name: family.table(name) for name in needed}
            needed = {name for name, table in tables.items() if table is None or table.learned}
        if model.base_model is not model:
            needed = {name for name in needed if name.startswith(prefix)}
    lost = {tensor for tensor in needed if "pooler" not in tensor}
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors that a {type(model).__name__} needs are missing in {name!r}, the first is "
            f"{min(lost)!r}; is every weight file there, and does its config.json belong to it?"
        )
    # refuse tensors of layers that the model does not have; a surplus pooler or pretraining head does no harm
    known = {LAYER.sub(".0.", tensor) for tensor in model.state_dict()}
    for tensor in sorted(info["unexpected_keys"]):
        first = LAYER.sub(".0.", tensor)
        if LAYER.search(tensor) and {first, prefix + first} & known:
            raise CheckpointError(
                f"{name!r} has tensors of layers that its config.json does not have, the first is {tensor!r}; correct "
                f"its number of layers there ({model.config.num_hidden_layers} now), or save it again without them."
            )
    return model.eval(), without_random_pooler(model, missing)


def without_random_pooler(model: Any, missing: set[str]) -> set[str]:
    """Remove a random pooler. Returns ``missing`` without its parameters, but all of ``missing`` for a model with a
    head."""
    base = model.base_model
    pooler = "pooler." if base is model else f"{model.base_model_prefix}.pooler."
    pooler_names = {name for name in missing if name.startswith(pooler)}
    if pooler_names:
        base.pooler = None
    return missing - pooler_names if base is model else missing


def outputs(model: Any, ids: Tensor, *, decoder_tokens: int | None = None, **arguments: Any) -> dict[str, Tensor]:
    """All tensors that one forward pass over ``ids (B, N)`` returns, by name.

    A decoder beside an encoder gets the first ``decoder_tokens`` ids, shifted right by one. It gets all ids if that is
    ``None``, and in sequence classifiers.
    """
    if "MultipleChoice" in type(model).__name__:
        ids = ids.unsqueeze(1)
    if model.config.is_encoder_decoder:
        if type(model).__name__.endswith("ForSequenceClassification"):  # the head reads the end token's state
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], model.config.eos_token_id)], dim=1)
            decoder_tokens = None
        start = torch.full_like(ids[:, :1], decoder_start(model.config))
        count = min(ids.shape[1], decoder_tokens or ids.shape[1])
        arguments["decoder_input_ids"] = torch.cat([start, ids], dim=1)[:, :count]
    family = known_family(model.config)
    if family is not None:
        arguments = {**family.spec.further_inputs(model.config, *ids.shape[:2]), **arguments}
    with torch.no_grad():
        returned = model(input_ids=ids, return_dict=True, **arguments)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor)}


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), quiet_torchao():
            warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)\b")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()


class SharedSettings:
    """Settings of the process within a ``with`` block: the first of several threads sets them, the last restores them.

    Args:
        settings: makes the context of one thread.
    """

    def __init__(self, settings: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self.settings, self.users, self.lock, self.restore = settings, 0, threading.Lock(), contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.users == 0:
                self.restore.enter_context(self.settings())
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.restore.close()


quiet_libraries = SharedSettings(_quiet_libraries)
"""Context (or decorator) in which transformers, huggingface_hub and torchao log only errors. They draw no progress
bars."""
