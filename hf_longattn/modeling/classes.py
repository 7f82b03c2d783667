"""Creates a family's Long classes. Each derives from a mixin and from a model class of transformers, its base.

Classes are created on first use, in the family's module, so that no model is imported earlier. A family without a file
is a row of ``families.json`` (:func:`family_of_row`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BackendError
from ..names import missing, warn_missing
from .family.definition import ENTERED, FAMILIES, AttentionNames, PositionTable, base_package, stored_facts
from .family.definition import Family as Family
from .family.definition import long_config as long_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PACKAGE = __name__.rpartition(".modeling")[0]


def named(path: str) -> Any:
    """The object with a dotted path below this package: ``modeling.grids.LongGridMixin``, for example."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with tuples in place of lists, as fields of frozen dataclasses need them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def family_of_row(module: str, model_type: str, row: Mapping[str, Any]) -> Family:
    """The family that a row of ``families.json`` describes.

    Args:
        module: name of the family's module, in which its classes are created.
        model_type: model type of the base.
        row: the row (:func:`.family.definition.family_rows`).
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    facts = with_tuples(row)
    facts.pop("about", None)
    # the config class
    attributes = {**facts.pop("attributes", {})}
    if towers := facts.pop("towers", None):
        attributes["tower_classes"] = {name: FAMILIES[tower].config_class for name, tower in towers.items()}
    mixin = named(facts.pop("config", "modeling.family.long_config.LongConfig"))
    facts["config_class"] = long_config(module, mixin, CONFIG_MAPPING[model_type], **attributes)
    # objects in place of JSON values
    if tables := facts.get("position_tables"):
        facts["position_tables"] = tuple(PositionTable(**table) for table in tables)
    if width := facts.pop("head_dim", None):
        facts["attention"] = AttentionNames(head_dim=width)
    if "spec" in facts:  # a class with its fields, or an object with the fields that differ
        path, changes = facts["spec"]
        spec = named(path)
        change = spec if isinstance(spec, type) else partial(replace, spec)
        facts["spec"] = change(**with_tuples(changes))
    # the mixin for attention modules that this package replaces
    if replaced := facts.pop("replaced", None):
        # imported here, so that the config alone does not import the base's models
        from .attach.custom_attention import ReplacedModules, replacing

        package = base_package(model_type)
        modeling = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
        classes = {getattr(modeling, name): named(path) for name, path in replaced.items()}
        facts["mixin"] = replacing(module, classes, named(facts["mixin"]) if "mixin" in facts else ReplacedModules)
    return Family(**facts)


def give_classes(family: Family) -> None:
    """Add the config class to its module, with a ``__getattr__`` that makes the Long model classes on first use."""
    module = sys.modules[family.config_class.__module__]

    def module_getattr(name: str) -> Any:
        if name not in (*family.model_classes.values(), *family.parts.values()):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        vars(module).update(make_classes(family))
        return vars(module)[name]

    vars(module).update({family.config_class.__name__: family.config_class, "__getattr__": module_getattr})


ENTERED.append(give_classes)


def is_model_class(value: Any) -> bool:
    from transformers import PreTrainedModel

    return isinstance(value, type) and issubclass(value, PreTrainedModel)


def check_interface(model_class: Any) -> None:
    """Raise :class:`BackendError` for a class that does not call attention by transformers' AttentionInterface."""
    if not is_model_class(model_class):
        raise BackendError(
            f"{model_class.__name__} is not a model of transformers; pass the model inside it, or load it with "
            "model_kwargs={'attn_implementation': 'longattn'}."
        )
    if not hasattr(model_class, "_can_set_attn_implementation"):
        raise missing("set_implementation")
    from_timm = model_class.__name__.startswith("TimmWrapper")  # its layers are those of the package timm
    if not from_timm and model_class._can_set_attn_implementation():
        return
    raise BackendError(
        f"{model_class.__name__} does not take its attention from transformers' AttentionInterface, so it cannot be "
        "replaced; on it are BERT, RoBERTa, ELECTRA, ModernBERT, GPT-2, GPT-NeoX, OPT, Llama, BART, T5, ViT, "
        "Wav2Vec2, Whisper and others."
    )


def make_classes(family: Family) -> dict[str, type[PreTrainedModel]]:
    """All Long model classes of ``family`` by name, including the two stacks of an encoder-decoder.

    Raises:
        BackendError: the base of the installed transformers is not on the AttentionInterface.
    """
    from .attach.weights import register_loading
    from .mixin import LongDecoderMixin, LongStackMixin

    package = family.base_package
    base_model = family.base_model_name
    # Another version of transformers may not have this base on the AttentionInterface (GPT-J before 5.24).
    facts_of_installed = stored_facts()["transformers"]["version"] == importlib.metadata.version("transformers")
    if not facts_of_installed and family.base_model_type in stored_facts()["derived"]:
        check_interface(family.base_class(base_model))
    # The class that runs the layers gets ``base_mixin``: the base model, or its stacks or its inner model.
    parts = family.stacks or family.inner
    usual, base_mixin = map(named, family.spec.mixins)
    mixins: dict[str, type] = {base_model: usual if parts else base_mixin}
    mixins |= dict.fromkeys((*family.inner, *family.backbone_classes), base_mixin)
    stack_mixins = (base_mixin, LongDecoderMixin) if family.stack is None else (LongStackMixin,)
    mixins |= dict(zip(family.stacks, stack_mixins, strict=False))
    classes = {}
    for base_name, long_name in {**family.parts, **family.model_classes}.items():
        if base_name in family.parts:
            base = getattr(importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}"), base_name)
        else:
            base = family.base_class(base_name)
        if not is_model_class(base):
            continue
        classes[long_name] = _make(family, base, long_name, mixins.get(base_name, usual))
        # tables are extended for the base model, and for an encoder-decoder's ForCausalLM, which has the decoder alone
        extends = base_name == base_model or bool(family.stacks and base_name.endswith("ForCausalLM"))
        register_loading(family, base, classes[long_name], extends=extends)
    return classes


def _make(family: Family, base: type[PreTrainedModel], name: str, mixin: type) -> type[PreTrainedModel]:
    """The Long class ``name`` of ``base``, with ``mixin`` and the family's own mixin before it."""
    from transformers import GenerationMixin

    from .losses import LOSS_BY_ROW
    from .mixin import LongDecoderMixin, LongGenerationMixin

    bases: list[type] = [mixin, base]
    if family.mixin is not None:
        bases.insert(0, family.mixin)
    if issubclass(base, GenerationMixin):
        # transformers looks for GenerationMixin among the direct bases
        bases = [LongGenerationMixin, *bases, GenerationMixin]
    decodes = issubclass(mixin, LongDecoderMixin)
    tables = (table for table in family.position_tables if table.decoder == decodes)
    namespace: dict[str, Any] = {
        "__module__": family.module,
        "__doc__": family.spec.docstring.format(base=base.__name__, whose=" of the encoder" if decodes else ""),
        "config_class": family.config_class,
        "__annotations__": {"config": family.config_class},
        "family": family,
        # transformers' method reads the source code of its class, and this class has none
        "_can_set_experts_implementation": base._can_set_experts_implementation,
        "accepts_loss_kwargs": not base.__name__.endswith(LOSS_BY_ROW),  # read by transformers' Trainer
        "position_table": next(tables, None),
    }
    if family.config_class.score_cap is not None:
        namespace["_supports_sdpa"] = False  # sdpa ignores the cap on scores; transformers before 5.23 allows it
    long_class: Any = type(name, tuple(bases), namespace)
    record_outputs(long_class)
    return long_class


def record_outputs(model_class: Any) -> None:
    """Tell transformers which outputs of layers, such as attentions, it can collect from ``model_class``.

    transformers notes this when it builds an instance, but the model inside a head becomes a Long model only later.
    """
    from transformers.utils import output_capturing

    if not hasattr(output_capturing, "_CAN_RECORD_REGISTRY") or not hasattr(model_class, "_can_record_outputs"):
        warn_missing("record_outputs")
        return
    # the registry's own __setitem__ takes an instance, and would look up the class of this class
    dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(model_class), model_class._can_record_outputs)
