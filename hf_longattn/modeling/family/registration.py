"""Registers Long models, and transformers' classes with mechanisms, with transformers, peft and sentence-transformers.

``import hf_longattn`` must stay cheap, and must not import torch or models. The public ``AutoConfig.register`` and
``AutoModel.register`` take classes, which would import both. This module therefore enters names into transformers'
tables. transformers does the same: it stores names (``"bert": "BertModel"``), and imports a class on first use, from
the module that is noted for the model type. For ``"long_bert"``, this is :mod:`hf_longattn.families`.

The tables are private (:mod:`hf_longattn.names`). Each is filled right after the import of its module, by an entry in
``sys.meta_path`` that wraps the loaders of the modules in :data:`TABLES`, and of torchao. Tables of modules that are
imported already are filled at once. Entries of stock models do not change, except that :data:`PIPELINES` gives two
tasks a subclass of transformers' pipeline.

Config classes are entered in the same way into the table of :mod:`copyreg`, so that a pickle of a stock model with
``attn_implementation="longattn"`` imports this package where it is loaded.
"""

from __future__ import annotations

import contextlib
import copyreg
import importlib
import importlib.abc
import importlib.machinery
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple

from ...files import GENERIC_CLASS, GENERIC_TYPE
from ...names import BACKEND, PRIVATE_APIS, missing, warn_missing, warn_untested
from .definition import FAMILIES, family_names, first_word, long_prefix, module_name

PACKAGE = __name__.rpartition(".modeling")[0]
FAMILIES_MODULE = f"{PACKAGE}.families"
MULTIMODAL, MULTIMODAL_TYPE = "LongMultimodal", "long_multimodal"
MULTIMODAL_CLASSES = {
    "MODEL_MAPPING": "Model",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING": "ForSequenceClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING": "ForTokenClassification",
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING": "ForQuestionAnswering",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": "ForImageClassification",
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING": "ForAudioClassification",
}
"""Table of an Auto class -> suffix of the multimodal class to enter there. Multimodal models have no base in
transformers."""
PIPELINES = {
    "document-question-answering": "PageQuestionAnsweringPipeline",
    "automatic-speech-recognition": "SpeechRecognitionPipeline",
}
"""Task of transformers' pipelines -> the class that runs it for Long models."""
VLLM_CLASSES = {
    "MODEL_MAPPING": "TransformersEmbeddingModel",
    "MODEL_FOR_CAUSAL_LM_MAPPING": "TransformersForCausalLM",
}
"""Table of an Auto class -> the class of vLLM's Transformers backend that runs its Long models."""


def register_configs(configuration_auto: ModuleType) -> None:
    """Register every Long config class with ``AutoConfig``."""
    mapping, families = configuration_auto.CONFIG_MAPPING, importlib.import_module(FAMILIES_MODULE)
    if not hasattr(mapping, "_modules"):
        warn_missing("lazy_mapping")
        return
    entries = [(names.model_type, names.config, names.module) for names in _family_entries()]
    for model_type, config, module in (*entries, (MULTIMODAL_TYPE, f"{MULTIMODAL}Config", MULTIMODAL_TYPE)):
        configuration_auto.CONFIG_MAPPING_NAMES[model_type] = config
        mapping._modules[module] = families


def register_models(modeling_auto: ModuleType) -> None:
    """Register every Long class with each ``AutoModel…`` class that knows its base class."""
    known, families = lazy_mappings(modeling_auto), importlib.import_module(FAMILIES_MODULE)
    for table in known:
        _enter(table, long=True, complete=table is modeling_auto.MODEL_MAPPING)
    for name, head in MULTIMODAL_CLASSES.items():
        table = getattr(modeling_auto, name)
        if any(table is other for other in known):
            enter_class(
                table, MULTIMODAL_TYPE, f"{MULTIMODAL}{head}", f"{MULTIMODAL}Config", MULTIMODAL_TYPE, families
            )


def register_readers(auto: ModuleType) -> None:
    """Make an Auto class load the base's tokenizer or processor if the files of a Long model do not name one."""
    for table in lazy_mappings(auto):
        _enter(table, long=False)


def register_tokenizers(tokenization_auto: ModuleType) -> None:
    """Make ``AutoTokenizer`` load the base's tokenizer for a Long model. If transformers does not trust the tokenizer
    class in the files of a base, it does not trust it in those of the Long model either."""
    register_readers(tokenization_auto)
    overrides = model_type_table("tokenizer_overrides", tokenization_auto)
    if overrides is not None:
        overrides.update([f"long_{base}" for base in family_names(overrides)])


def _enter(table: Any, *, long: bool, complete: bool = False) -> None:
    """Enter every Long model type in the table of an Auto class.

    Args:
        table: the table.
        long: whether to enter the Long class, and not the base's class.
        complete: whether to enter a type without an entry for its base, too (SigLIP's text model, which is part of
            another model).
    """
    entries, families = mapped_names(table), importlib.import_module(FAMILIES_MODULE)
    for names in _family_entries():
        entry = entries.get(names.base, names.base_model if complete and names.prefix != GENERIC_CLASS else None)
        if entry is None:
            continue
        if long:
            heads = (entry,) if isinstance(entry, str) else entry
            if not all(head.startswith(first_word(names.base)) for head in heads):
                continue  # the base is loaded as a class of another model, which has no Long class here
            long_heads = tuple(f"{names.prefix}{head}" for head in heads)
            entry = long_heads[0] if isinstance(entry, str) else long_heads
        enter_class(table, names.model_type, entry, names.config, names.module, families)


class FamilyNames(NamedTuple):
    """The names of a family in transformers' tables.

    base, model_type: the model types of the base and of the family.
    base_model: the usual name of the base's class without a head.
    prefix: the text before a base class's name in the name of its Long class.
    config: the name of the family's config class.
    module: the module name of the model type.
    """

    base: str
    model_type: str
    base_model: str
    prefix: str
    config: str
    module: str


@cache
def _family_entries() -> list[FamilyNames]:
    """The names of every family, and of every architecture without Long classes. Computed once for all tables."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    entries = []
    for base, config in CONFIG_MAPPING_NAMES.items():
        stem = config.removesuffix("Config")
        names = [(GENERIC_TYPE + base, GENERIC_CLASS)]
        if base in FAMILIES:
            names.append((f"long_{base}", long_prefix(base)))
        for model_type, prefix in names:
            entries.append(
                FamilyNames(
                    base,
                    model_type,
                    f"{stem}Model",
                    prefix,
                    f"{prefix}{config}",
                    module_name(model_type),
                )
            )
    return entries


def register_attention(module: ModuleType) -> None:
    """Make ``attn_implementation="longattn"`` known to transformers. Also warns of untested versions, since every
    program with models imports this module."""
    warn_untested()
    importlib.import_module(f"{PACKAGE}.modeling.backend")


def register_adapters(constants: ModuleType) -> None:
    """Make peft adapt the same modules in a Long model as in its base."""
    # one table per method: model type -> modules to adapt
    tables = [
        value
        for name, value in vars(constants).items()
        if name.endswith("_MODULES_MAPPING") and isinstance(value, dict)
    ]
    if not tables:
        warn_missing("target_modules")
    for table in tables:
        _enter_types(table)


def register_types(name: str, module: ModuleType) -> None:
    """Enter every Long model type in the private table ``name`` of ``module``."""
    _enter_types(model_type_table(name, module) or {})


def register_pipelines(pipelines: ModuleType) -> None:
    """Make pipelines for document question answering and speech recognition treat Long models as their bases."""
    tasks, module = pipelines.PIPELINE_REGISTRY.supported_tasks, f"{PACKAGE}.modeling.pipelines"
    for task, name in PIPELINES.items():
        by_name = isinstance(tasks[task]["impl"], str)  # since transformers 5.23
        if not by_name and module in sys.modules and not hasattr(sys.modules[module], name):
            return  # our module is just being imported, and calls this function again at its end
        tasks[task]["impl"] = f"{module}.{name}" if by_name else getattr(importlib.import_module(module), name)


def register_standalone_encoders(transformer: ModuleType) -> None:
    """Make sentence-transformers load the encoder of a Long encoder-decoder by its Long class, and treat a Long audio
    model like its base.

    sentence-transformers uses the first entry that fits the config class. Without our entries, this would be the
    base's, whose class computes full attention.
    """
    for name in ("feature_inputs", "logits_inputs", "generating_inputs"):
        register_types(name, transformer)
    table = model_type_table("standalone_encoders", transformer) or []
    for config_class, _, name in list(table):
        for base in family_names([config_class.model_type]):
            with contextlib.suppress(Exception):  # an error in a family is raised again when its models are loaded
                family = FAMILIES[base]
                long_names = {**family.model_classes, **family.parts}
                table.insert(0, (family.config_class, family.module, long_names[name]))


def register_with_vllm() -> None:
    """Make vLLM run Long models by its Transformers backend. vLLM calls this entry point, a general plugin, in each of
    its processes."""
    from transformers.models.auto import modeling_auto
    from vllm import ModelRegistry

    from .long_config import LongConfig
    from .sliding_window import VLLM

    LongConfig.served_by = VLLM
    for table, backend in VLLM_CLASSES.items():
        for model_type, names in mapped_names(getattr(modeling_auto, table)).items():
            if model_type.startswith("long_") and model_type != MULTIMODAL_TYPE:
                for name in (names,) if isinstance(names, str) else names:
                    ModelRegistry.register_model(name, f"vllm.model_executor.models.transformers:{backend}")


def register_pickles(configuration: ModuleType) -> None:
    """Make pickles of a module's configs import this package if their attention is ``longattn``.

    Otherwise, a pickle of a stock model would name only transformers' classes, and a new process that loads the pickle
    would not know the attention ``longattn``.
    """
    utilities = sys.modules.get("transformers.configuration_utils")
    base = getattr(utilities, "PreTrainedConfig", ())  # () if the module is not one of transformers' configs
    for value in vars(configuration).values():
        if isinstance(value, type) and issubclass(value, base):
            copyreg.dispatch_table.setdefault(value, _reduced_config)


def _reduced_config(config: Any) -> Any:
    """The ``__reduce__`` value of a config for pickle and copy. If the config names ``longattn``, :func:`new_config`
    creates the copy, so that loading imports this package."""
    reduced = config.__reduce_ex__(2)
    names_backend = any(isinstance(value, str) and value == BACKEND for value in vars(config).values())
    if not names_backend or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return reduced
    return (new_config, *reduced[1:])


def new_config(config_class: type[Any], *arguments: Any) -> Any:
    """An empty config, whose fields pickle sets afterwards. Pickles name this function: do not rename or move it."""
    return config_class.__new__(config_class, *arguments)


def _enter_types(table: dict[str, Any]) -> None:
    """Give every Long model type the entry of its base."""
    for base in family_names(table):
        table.setdefault(f"long_{base}", table[base])


TABLES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": register_configs,
    "transformers.models.auto.modeling_auto": register_models,
    "transformers.models.auto.tokenization_auto": register_tokenizers,
    "transformers.models.auto.image_processing_auto": register_readers,
    "transformers.models.auto.feature_extraction_auto": register_readers,
    "transformers.models.auto.processing_auto": register_readers,
    "transformers.modeling_utils": register_attention,
    "transformers.pipelines": register_pipelines,
    "peft.utils.constants": register_adapters,
    "peft.utils.transformers_weight_conversion": partial(register_types, "expert_adapters"),
    "sentence_transformers.base.modality": partial(register_types, "message_formats"),
    "sentence_transformers.base.modules.transformer": register_standalone_encoders,
}
"""Module with tables -> function that enters Long models in them, called with the module after its import."""
CONFIGS = re.compile(r"(.*\.)?configuration_[^.]*")
"""Matches the names of modules of config classes. After their import, :func:`register_pickles` is called with them."""


@contextlib.contextmanager
def quiet_torchao() -> Iterator[None]:
    """Context that silences warnings of torchao and torch.onnx about missing optional parts. transformers imports
    torchao with any model, also where nobody uses it.

    A log level that the user has set does not change.
    """
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.onnx", "torch.utils._pytree")]
    loggers = [logger for logger in loggers if logger.level == logging.NOTSET]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)


class _AfterImport(importlib.abc.MetaPathFinder):
    """A finder that finds modules as Python's own does, and wraps their loaders. The function of :data:`TABLES` or
    :data:`CONFIGS` is called right after a module has been executed. torchao's modules are executed quietly."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module to wrap; ``None`` for other modules, which the next finder finds."""
        quietly = name.partition(".")[0] == "torchao"
        enter = TABLES.get(name, register_pickles if CONFIGS.fullmatch(name) else None)
        if enter is None and not quietly:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with quiet_torchao() if quietly else contextlib.nullcontext():
                execute(module)
            if enter is not None:
                enter(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Fill every table, now if its module is imported already, or else after its import. ``import hf_longattn`` calls
    this. Further calls change nothing."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    configs = [name for name in sys.modules if name not in TABLES and CONFIGS.fullmatch(name)]
    for name, enter in [*TABLES.items(), *((name, register_pickles) for name in configs)]:
        module = sys.modules.get(name)
        if module is not None:
            enter(module)


def lazy_mappings(module: ModuleType) -> list[Any]:
    """The tables of a transformers module in which Auto classes look up model classes, readers and so on. Warns of a
    table that lacks the private attributes used here, and leaves it out."""
    tables = [
        value
        for value in vars(module).values()
        if hasattr(value, "_model_mapping") and hasattr(value, "_config_mapping") and not isinstance(value, type)
    ]
    needed = ("_modules", "_reverse_config_mapping", "_load_attr_from_module")
    known = [table for table in tables if all(hasattr(table, name) for name in needed)]
    if len(known) < len(tables):
        warn_missing("lazy_mapping")
    return known


def mapped_names(table: Any) -> Mapping[str, Any]:
    """The mapping from a model type to the name of its class."""
    return table._model_mapping


def enter_class(table: Any, model_type: str, name: Any, config: str, module_name: str, module: ModuleType) -> None:
    """Enter a class in a table by its name. It is imported on first use.

    Args:
        table: the table of an Auto class.
        model_type: the model type whose class it is.
        name: the name of the class, or a tuple of names for a table of tuples.
        config: the name of the config class.
        module_name: the module name of the model type.
        module: the module with the class.
    """
    table._model_mapping[model_type] = name
    table._modules[module_name] = module
    table._reverse_config_mapping[config] = model_type


def auto_mapping(auto_class: Any) -> Any:
    """An Auto class's mapping from config class to model class; ``None`` for other classes."""
    return getattr(auto_class, "_model_mapping", None)


def auto_classes() -> list[tuple[str, Any]]:
    """Name and table of every ``AutoModel...``, sorted by name."""
    from transformers.models.auto import modeling_auto

    tables = [
        (name, table)
        for name, value in sorted(vars(modeling_auto).items())
        if name.startswith("AutoModel") and (table := auto_mapping(value)) is not None
    ]
    if not tables:
        raise missing("lazy_mapping")
    return tables


def auto_class_name(config: Any, class_name: str) -> str | None:
    """Name of the Auto class that loads the model class ``class_name``; ``None`` if there is none.

    config: the model's config, or its config class.
    """
    model_type = getattr(config, "registered_type", config.model_type)
    # These two also list other heads, for example BART's head that generates text. They are tried last.
    last = ("AutoModelForMaskedLM", "AutoModelForPreTraining")
    for name, table in sorted(auto_classes(), key=lambda entry: last.index(entry[0]) if entry[0] in last else -1):
        names = mapped_names(table).get(model_type)
        if isinstance(names, str):
            names = (names,)
        if class_name in (names or ()):
            return name
    return None


def model_type_table(name: str, module: ModuleType) -> Any:
    """A private table of ``module``, under the name in ``PRIVATE_APIS[name]``. If the installed version lacks it, warn
    and return ``None``."""
    table = getattr(module, PRIVATE_APIS[name][0].partition(":")[2], None)
    if table is None:
        warn_missing(name)
    return table
