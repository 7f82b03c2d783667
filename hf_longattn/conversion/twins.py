"""Native twins: config and tensor names of stock architectures that compute what a long model does.

==============================================  =====================================================  ==================
long model                                      layers                                                 twin
==============================================  =====================================================  ==================
BERT, ELECTRA, DistilBERT, RoBERTa and its kin  full attention, with a longer position table           the base itself
Llama, Mistral                                  full attention or one window                           Mistral
BERT, RoBERTa and its kin                       ``window`` and ``longformer``                          Longformer
BERT, RoBERTa and its kin, BigBird              ``bigbird`` with transformers' blocks                  BigBird
==============================================  =====================================================  ==================

Software that knows the architecture can serve the twin without this package. :mod:`.native` writes it and compares it with the long model.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from ..engines.common.call import UNBOUNDED
from ..mechanisms import Mechanism
from ..mechanisms.bigbird import BigBird
from ..mechanisms.common.exact import full_of
from ..mechanisms.common.locality import band_of
from ..mechanisms.common.registry import prototype
from ..mechanisms.longformer import Longformer
from ..mechanisms.window import Window
from ..modeling.family.definition import Family
from ..modeling.family.sliding_window import band_around, with_base_windows
from .architectures import NAMES, OWN_FIELDS
from .long_models import TensorRename

ROBERTAS = frozenset(("roberta", "xlm-roberta", "camembert"))
HEADS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")


@dataclass(frozen=True)
class LongModel:
    """A long model as its config describes it.

    class_name: its Long class.
    masked: the caller passes a ``global_attention_mask`` for every text, so the config's global tokens do not matter.
    """

    config: Any
    class_name: str
    family: Family
    masked: bool = False

    @property
    def base(self) -> str:
        """transformers' model type of the base."""
        return self.family.base_model_type

    @cached_property
    def base_class(self) -> str:
        """Name of the base class, ``"BertForMaskedLM"`` for a ``LongBertForMaskedLM``."""
        return self.family.base_of(self.class_name)

    @cached_property
    def head(self) -> str:
        """The head without the base's name: ``"MaskedLM"``; ``"Model"`` for the encoder alone."""
        last = next((head for head in HEADS if self.base_class.endswith(f"For{head}")), "")
        return last or ("Model" if self.base_class.endswith("Model") else self.base_class)

    @cached_property
    def causal(self) -> bool:
        return bool(self.config.attending[1])

    @cached_property
    def layers(self) -> tuple[Mechanism, ...]:
        """The mechanism of every layer."""
        return tuple(prototype(*self.config.long_attention.for_layer(layer)) for layer in range(self.config.attending[0]))

    def values(self) -> dict[str, Any]:
        """Config values, without the model's identity and without fields that only Long configs have."""
        ours = {*NAMES, *OWN_FIELDS}
        return {name: value for name, value in with_base_windows(self.config.to_dict()).items() if name not in ours}


class NativeTwin(ABC):
    """One stock architecture; all methods read configs only."""

    families: ClassVar[frozenset[str]]
    """Base model types of the long models that the twin can hold."""
    full: ClassVar[bool] = False
    """Whether it can hold a model with full attention in all layers."""
    computes: ClassVar[tuple[type[Mechanism], ...]] = ()
    """Mechanisms other than full attention that its layers can compute."""
    takes_globals: ClassVar[bool] = False
    """Whether its forward pass takes ``global_attention_mask``."""

    @abstractmethod
    def class_name(self, model: LongModel) -> str:
        """Name of the twin's class with the same head, for example "LongformerForMaskedLM"."""

    def refusal(self, model: LongModel) -> str | None:
        """Reason why the twin does not compute the same, as a sentence. It names the layer. ``None`` if the twin does."""
        return None

    def config_values(self, model: LongModel) -> dict[str, Any]:
        """Values of the twin's config."""
        return model.values()

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        """The new names of a tensor. Several renamings make copies."""
        return (TensorRename(name),)

    def note(self, model: LongModel) -> str:
        """A remark for users of the twin; empty by default."""
        return ""

    def config(self, model: LongModel) -> Any:
        """The twin's config."""
        config_class: Any = getattr(transformers, self.class_name(model)).config_class
        stray = set(model.family.base_config_class.__dataclass_fields__) - set(config_class.__dataclass_fields__)
        values = {name: value for name, value in self.config_values(model).items() if name not in stray}
        return config_class.from_dict({**values, "architectures": [self.class_name(model)]})

    def skeleton(self, model: LongModel) -> nn.Module:
        """The twin's model on the meta device."""
        with torch.device("meta"):
            built: nn.Module = getattr(transformers, self.class_name(model))(self.config(model))
        return built


class Base(NativeTwin):
    """The base class of an encoder. Its position table is the long one."""

    families = ROBERTAS | {"bert", "electra", "distilbert"}
    full = True

    def class_name(self, model: LongModel) -> str:
        return model.base_class


class Mistral(NativeTwin):
    """Mistral, with one window for all layers, or none. It has no biases."""

    families = frozenset(("llama", "mistral"))
    full = True
    computes = (Window,)

    def class_name(self, model: LongModel) -> str:
        return model.base_class.replace("Llama", "Mistral", 1)

    def refusal(self, model: LongModel) -> str | None:
        bands = [band_of(mechanism, True) for mechanism in model.layers]
        if None in bands:
            index = bands.index(None)
            return f"Layer {index} has {described(model.layers[index])}, which Mistral does not compute."
        index = next((index for index, band in enumerate(bands) if band != bands[0]), 0)
        if index:
            return f"Layer {index} has another window than layer 0, and Mistral has one setting for all layers."
        bias = next((name for name in ("attention_bias", "mlp_bias") if getattr(model.config, name, False)), None)
        return None if bias is None else f"Layer 0 has biases ({bias}=True), and Mistral has none."

    def config_values(self, model: LongModel) -> dict[str, Any]:
        band = band_of(model.layers[0], True)
        back = UNBOUNDED if band is None else band[0]
        return {**model.values(), "sliding_window": None if back == UNBOUNDED else back + 1}


class EncoderTwin(NativeTwin):
    """A twin with the layers of BERT: an own name for its encoder and its head, and own rows in front of the position table."""

    families = ROBERTAS | {"bert"}
    stem: ClassVar[str]
    """Start of the names of its classes."""
    prefix: ClassVar[str]
    """Prefix of the encoder's tensors in models with a head."""
    heads: ClassVar[tuple[str, ...]]
    """Heads that the twin can hold."""
    of_bert: ClassVar[dict[str, str]] = {}
    """Start of a tensor's name in a head of BERT -> its start in the twin."""
    of_roberta: ClassVar[dict[str, str]] = {}
    """The same for a head of RoBERTa."""

    def class_name(self, model: LongModel) -> str:
        return f"{self.stem}{f'For{model.head}' if model.head in self.heads else 'Model'}"

    @abstractmethod
    def leading(self, model: LongModel) -> int:
        """Rows of the twin's position table that are not positions."""

    def own_rows(self, model: LongModel) -> Callable[[Tensor], Tensor] | None:
        """A function that replaces the leading rows of the long model's table by those of the twin. ``None`` if they are equally many."""
        before, after = model.family.position_tables[0].offset_rows(model.config), self.leading(model)
        if before == after:
            return None
        return lambda table: torch.cat([table.new_zeros(after, table.shape[1]), table[before:]])

    def refusal(self, model: LongModel) -> str | None:
        config = model.config
        if model.causal or getattr(config, "add_cross_attention", False):
            return f"Layer 0 is a decoder's (is_decoder=True), and {self.stem} is an encoder."
        if model.head not in ("Model", *self.heads):
            differs = f"The head of a {model.base_class} differs from that of {self.stem}"
            return f"{differs}; export the encoder alone, or a model with another head."
        other_head = model.head == "MaskedLM" and (self.of_roberta if model.base in ROBERTAS else self.of_bert)
        if other_head and config.hidden_act != "gelu":  # RoBERTa's and Longformer's heads have GELU, the others the layers' activation
            head = f"The head of a {model.base_class} after layers with the activation {config.hidden_act!r}"
            return f"{head} differs from that of {self.stem}, and is the same with 'gelu' alone."
        return None

    def renamed(self, name: str, model: LongModel) -> str:
        """The name in the twin of a tensor of BERT or RoBERTa."""
        start = "roberta." if model.base in ROBERTAS else "bert."
        heads = self.of_roberta if model.base in ROBERTAS else self.of_bert
        part = next(filter(name.startswith, heads), None)
        if part is not None and model.head != "Model":
            return heads[part] + name.removeprefix(part)
        return f"{self.prefix}.{name.removeprefix(start)}" if name.startswith(start) else name


GLOBAL_PROJECTION = re.compile(r"\.long_attention\.separate\.(query|key|value)\.")
PROJECTION = re.compile(r"\.layer\.(\d+)\.attention\.self\.(query|key|value)\.")
NO_GLOBALS: tuple[Any, ...] = ((), (), False, False, None)


class LongformerTwin(EncoderTwin):
    """Longformer: RoBERTa's layers with windows, and separate projections for global tokens.

    Without ``separate_global``, the projections of the global tokens are copies of the layer's projections. Positions start after the
    padding token's id, as in RoBERTa. If a head of Longformer chooses global tokens, these must be the config's global tokens.
    """

    computes = (Longformer, Window)
    takes_globals = True
    stem, prefix, heads = "Longformer", "longformer", HEADS
    of_bert: ClassVar = {
        "cls.predictions.transform.dense.": "lm_head.dense.",
        "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
        "cls.predictions.decoder.": "lm_head.decoder.",
        "cls.predictions.bias": "lm_head.bias",
    }

    def refusal(self, model: LongModel) -> str | None:
        for index, mechanism in enumerate(model.layers):
            width = band_around(mechanism)
            if width is None:
                return f"Layer {index} has {described(mechanism)}, and every layer of Longformer has a window."
            if not width:
                return f"Layer {index} has a window of one token, and Longformer's windows are even."
        if reason := super().refusal(model):
            return reason
        if model.head == "QuestionAnswering" and not model.masked and model.base not in ROBERTAS:
            return (
                f"A {self.class_name(model)} expects three separators in every pair of texts and this {model.base_class} has two; "
                "export with --global-attention-mask and give every call that mask."
            )
        return self._globals_refusal(model)

    def _globals_refusal(self, model: LongModel) -> str | None:
        """Reason why a layer has other global tokens than the twin by itself, or takes no mask in a masked model. Else ``None``."""
        if model.masked:
            odd = next((index for index, mechanism in enumerate(model.layers) if not isinstance(mechanism, Longformer)), None)
            if odd is None:
                return None
            name = model.layers[odd].name
            return f"Layer {odd} has {name!r}, which takes no global_attention_mask, and every layer of {self.class_name(model)} does."
        separator = self._separator(model)
        rules = {"SequenceClassification": ((0,), (), False, False, None), "QuestionAnswering": ((), (), True, False, separator)}
        of_twin = rules.get(model.head, NO_GLOBALS)
        for index, mechanism in enumerate(model.layers):
            rule, marks_question = NO_GLOBALS, False
            if isinstance(mechanism, Longformer):
                o, marks_question = mechanism.options, getattr(model.config, "question_separator_id", None) is not None
                ends = o.separator_token_id if o.separator_token_id is not None else getattr(model.config, "sep_token_id", None)
                segments = o.global_first_segment or o.global_second_segment
                ids = tuple(o.global_token_ids)
                rule = (tuple(o.global_tokens), ids, o.global_first_segment, o.global_second_segment, ends if segments else None)
            if rule != of_twin or marks_question:
                positions, _, first, second, _ = of_twin
                options = [f"global_tokens={'+'.join(map(str, positions)) or 'none'}"]
                options += ["global_first_segment=true"] * first + ["global_second_segment=true"] * second
                return (
                    f"Layer {index} makes {'the question' if marks_question else describe_rule(rule)} global, while a "
                    f"{self.class_name(model)} by itself makes {describe_rule(of_twin)} global; convert with "
                    f"{' '.join(f'--option {option}' for option in options)}, or export with --global-attention-mask and give every call "
                    "that mask."
                )
        return None

    def _separator(self, model: LongModel) -> int | None:
        """The separator token of the twin's config."""
        chosen = getattr(model.layers[0].options, "separator_token_id", None)
        return getattr(model.config, "sep_token_id", None) if chosen is None else chosen

    def config_values(self, model: LongModel) -> dict[str, Any]:
        separator, pad = self._separator(model), model.config.pad_token_id
        return {
            **model.values(),
            "max_position_embeddings": model.family.longest(model.config) + self.leading(model),
            "attention_window": [band_around(mechanism) for mechanism in model.layers],
            "pad_token_id": 0 if pad is None else pad,
            "sep_token_id": model.config.eos_token_id if separator is None else separator,
        }

    def leading(self, model: LongModel) -> int:
        return int(model.config.pad_token_id or 0) + 1

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        target = self.renamed(name, model)
        if model.base == "bert" and model.head == "SequenceClassification":  # Longformer's head has BERT's pooler inside
            target = re.sub(r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1", target)
            target = target.replace("longformer.pooler.dense.", "classifier.dense.")
        if GLOBAL_PROJECTION.search(target):
            return (TensorRename(GLOBAL_PROJECTION.sub(r".\1_global.", target)),)
        match = PROJECTION.search(target)
        if match is None:
            return (TensorRename(target, self.own_rows(model) if target.endswith("position_embeddings.weight") else None),)
        copy = PROJECTION.sub(r".layer.\1.attention.self.\2_global.", target)
        separate = getattr(model.layers[int(match[1])].options, "separate_global", False)
        return (TensorRename(target),) if separate else (TensorRename(target), TensorRename(copy))

    def note(self, model: LongModel) -> str:
        return "every call must be given the global_attention_mask" if model.masked else ""


def describe_rule(rule: tuple[Any, ...]) -> str:
    """Which tokens a layer makes global, as text: positions, ids, first segment, second segment."""
    positions, ids, first, second, _ = rule
    parts = [f"position{'s' * (len(positions) > 1)} {', '.join(map(str, positions))}"] if positions else []
    parts += [f"token id{'s' * (len(ids) > 1)} {', '.join(map(str, ids))}"] if ids else []
    parts += ["the first segment"] * first + ["the second segment"] * second
    return " and ".join(parts) or "no token"


class BigBirdTwin(EncoderTwin):
    """BigBird, for layers with transformers' variant of `bigbird`. Positions start with the first row of the table."""

    families = EncoderTwin.families | {"big_bird"}
    computes = (BigBird,)
    stem, prefix, heads = "BigBird", "bert", ("MaskedLM", "TokenClassification")
    of_roberta: ClassVar = {
        "lm_head.dense.": "cls.predictions.transform.dense.",
        "lm_head.layer_norm.": "cls.predictions.transform.LayerNorm.",
        "lm_head.decoder.": "cls.predictions.decoder.",
        "lm_head.bias": "cls.predictions.bias",
    }

    def class_name(self, model: LongModel) -> str:
        return model.base_class if model.base == "big_bird" else super().class_name(model)

    def refusal(self, model: LongModel) -> str | None:
        first = model.layers[0]
        for index, mechanism in enumerate(model.layers):
            if not isinstance(mechanism, BigBird):
                return f"Layer {index} has {described(mechanism)}, and every layer of BigBird has its blocks."
            o = mechanism.options
            wanted = {"random_pattern": ("hf_eval", "hf"), "blocks_over": ("input",), "seed": (0,)}
            odd = next((name for name, values in wanted.items() if getattr(o, name) not in values), None)
            if odd is not None:
                has, needed = getattr(o, odd), wanted[odd][0]
                return f"Layer {index} has 'bigbird' with {odd}={has}, and transformers' BigBird is that with {odd}={needed}."
            if o != first.options:
                return f"Layer {index} has other blocks than layer 0, and BigBird has the same in all layers."
        return None if model.base == "big_bird" else super().refusal(model)

    def config_values(self, model: LongModel) -> dict[str, Any]:
        o: Any = model.layers[0].options
        blocks = {"attention_type": "block_sparse", "block_size": o.block_size, "num_random_blocks": o.num_random_blocks}
        if model.base == "big_bird":
            return {**model.values(), **blocks}
        fixed = {"use_bias": True, "rescale_embeddings": False, "max_position_embeddings": model.family.longest(model.config)}
        return {**model.values(), **fixed, **blocks}

    def leading(self, model: LongModel) -> int:
        return 0

    def rename(self, name: str, model: LongModel) -> tuple[TensorRename, ...]:
        if model.base == "big_bird":
            return (TensorRename(name),)
        target = self.renamed(name, model).replace("pooler.dense.", "pooler.")
        return (TensorRename(target, self.own_rows(model) if target.endswith("position_embeddings.weight") else None),)

    def note(self, model: LongModel) -> str:
        o: Any = model.layers[0].options
        return (
            f"transformers' BigBird computes full attention for good after its first input of at most {5 + 2 * o.num_random_blocks} blocks "
            f"of {o.block_size} tokens"
        )


TWINS = (Base(), Mistral(), LongformerTwin(), BigBirdTwin())


@dataclass(frozen=True)
class TwinChoice:
    """The twin of a long model, or ``None`` with a reason."""

    twin: NativeTwin | None
    class_name: str
    reason: str
    note: str = ""

    def describe(self) -> str:
        """The choice as text, for a table."""
        if self.twin is None:
            return f"none: {self.reason}"
        return f"{self.class_name} of transformers" + (f" ({self.note})" if self.note else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        if self.twin is None:
            return {"class": None, "reason": self.reason}
        model_type = getattr(transformers, self.class_name).config_class.model_type
        return {"class": self.class_name, "model_type": model_type, **({"note": self.note} if self.note else {})}


def choose_twin(model: LongModel) -> TwinChoice:
    """The twin that computes what the model does. Otherwise the reason why there is none."""
    twins = [twin for twin in TWINS if model.base in twin.families]
    if not twins:
        return TwinChoice(None, "", f"A {model.class_name} has none; BERT, RoBERTa and their kin, BigBird, Llama and Mistral have.")
    for number, mechanism in enumerate(model.layers):
        if (full := full_of(mechanism)) is not None:
            return TwinChoice(None, "", f"No stock architecture has exact_length={full.max_length}; convert with --option exact_length=0.")
        if mechanism.relative is not None:
            reason = f"Layer {number} adds relative positions ({mechanism.options.relative}), which no stock architecture has."
            return TwinChoice(None, "", reason)
    bands = [band_of(mechanism, model.causal) for mechanism in model.layers]
    index = next((index for index, band in enumerate(bands) if band is None or band[0] != UNBOUNDED), None)
    odd = model.layers[index or 0]
    twin = next((twin for twin in twins if (twin.full if index is None else isinstance(odd, twin.computes))), None)
    if twin is None:
        reason = f"Layer {index or 0} has {described(odd)}, and no stock architecture has it in the layers of a {model.base_class}."
        return TwinChoice(None, "", reason)
    name = twin.class_name(model)
    reason = twin.refusal(model) or ("" if hasattr(transformers, name) else f"transformers has no {name} with the model's head.")
    return TwinChoice(None if reason else twin, "" if reason else name, reason, "" if reason else twin.note(model))


def described(mechanism: Mechanism) -> str:
    """A mechanism with the options that are not its defaults: ``'window' with num_sinks=4``."""
    changed = mechanism.options.changed()
    return repr(mechanism.name) + (f" with {', '.join(changed)}" if changed else "")
