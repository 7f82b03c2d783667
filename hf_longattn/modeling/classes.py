"""Creates a family's Long classes, each from a mixin and its base class.

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
    """The object at a dotted path below this package."""
    home, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{PACKAGE}.{home}"), name)


def with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with tuples in place of lists, as fields of frozen dataclasses need them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def family_of_row(module: str, model_type: str, row: Mapping[str, Any]) -> Family:
    """The family of a base without a file.

    Args:
        module: name of the family's module, which has its classes.
        model_type: model type of the base.
        row: the family's row of ``families.json`` (:func:`.family.definition.family_rows`).
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    facts = with_tuples(row)
    facts.pop("about", None)
    attributes = {**facts.pop("attributes", {})}
    if towers := facts.pop("towers", None):
        attributes["tower_classes"] = {name: FAMILIES[tower].config_class for name, tower in towers.items()}
    mixin = named(facts.pop("config", "modeling.family.long_config.LongConfig"))
    facts["config_class"] = long_config(module, mixin, CONFIG_MAPPING[model_type], **attributes)
    if tables := facts.get("position_tables"):
        facts["position_tables"] = tuple(PositionTable(**table) for table in tables)
    if width := facts.pop("head_dim", None):
        facts["attention"] = AttentionNames(head_dim=width)
    if "spec" in facts:
        path, changes = facts["spec"]
        spec = named(path)
        change = spec if isinstance(spec, type) else partial(replace, spec)
        facts["spec"] = change(**with_tuples(changes))
    if replaced := facts.pop("replaced", None):  # using only the config must not import the base's models
        from .attach.custom_attention import ReplacedModules, replacing

        package = base_package(model_type)
        modeling = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
        classes = {getattr(modeling, name): named(path) for name, path in replaced.items()}
        facts["mixin"] = replacing(module, classes, named(facts["mixin"]) if "mixin" in facts else ReplacedModules)
    return Family(**facts)


def give_classes(family: Family) -> None:
    """Give the config's module the config class and the Long classes. A ``__getattr__`` makes the latter on first
    use."""
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
    """Raise :class:`BackendError` for a class whose attention is not on the AttentionInterface."""
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
    from transformers import PreTrainedModel

    from .attach.weights import register_loading
    from .mixin import LongDecoderMixin, LongStackMixin

    package = family.base_package
    base_model = family.base_model_name
    facts_of_installed = stored_facts()["transformers"]["version"] == importlib.metadata.version("transformers")
    # GPT-J before 5.24, for example
    if not facts_of_installed and family.base_model_type in stored_facts()["derived"]:
        check_interface(family.base_class(base_model))
    parts = family.stacks or family.inner  # classes that run in place of the base model
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
        if not isinstance(base, type) or not issubclass(base, PreTrainedModel):
            continue
        classes[long_name] = _make(family, base, long_name, mixins.get(base_name, usual))
        # a ForCausalLM has no encoder
        extends = base_name == base_model or bool(family.stacks and base_name.endswith("ForCausalLM"))
        register_loading(family, base, classes[long_name], extends=extends)
    return classes


def _make(family: Family, base: type[PreTrainedModel], name: str, mixin: type) -> type[PreTrainedModel]:
    from transformers import GenerationMixin

    from .losses import LOSS_BY_ROW
    from .mixin import LongDecoderMixin, LongGenerationMixin

    bases: list[type] = [mixin, base]
    if family.mixin is not None:
        bases.insert(0, family.mixin)
    if issubclass(base, GenerationMixin):
        # transformers looks for the latter among the direct bases
        bases = [LongGenerationMixin, *bases, GenerationMixin]
    namespace: dict[str, Any] = {
        "__module__": family.module,
        "__doc__": family.spec.docstring.format(
            base=base.__name__, whose=" of the encoder" if issubclass(mixin, LongDecoderMixin) else ""
        ),
        "config_class": family.config_class,
        "__annotations__": {"config": family.config_class},
        "family": family,
        # transformers reads the source code of a class, and finds none of this one
        "_can_set_experts_implementation": base._can_set_experts_implementation,
        "accepts_loss_kwargs": not base.__name__.endswith(LOSS_BY_ROW),  # read by transformers' Trainer
        "position_table": next(
            (table for table in family.position_tables if table.decoder == issubclass(mixin, LongDecoderMixin)), None
        ),
    }
    if family.config_class.score_cap is not None:
        namespace["_supports_sdpa"] = False  # sdpa ignores the cap on scores; transformers before 5.23 allows it
    long_class: Any = type(name, tuple(bases), namespace)
    record_outputs(long_class)
    return long_class


def record_outputs(model_class: Any) -> None:
    """Register the recordable outputs of ``model_class`` with transformers.

    transformers does this when an instance is built, but the model inside a head becomes a Long model only later.
    """
    from transformers.utils import output_capturing

    if not hasattr(output_capturing, "_CAN_RECORD_REGISTRY") or not hasattr(model_class, "_can_record_outputs"):
        warn_missing("record_outputs")
        return
    dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(model_class), model_class._can_record_outputs)
