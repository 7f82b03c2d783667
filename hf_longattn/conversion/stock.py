"""Stock checkpoints: config and tensors of an architecture of transformers that computes what a long model does.

==============================================  =====================================================  ==================
long model                                      layers                                                 stock architecture
==============================================  =====================================================  ==================
BERT, ELECTRA, DistilBERT, RoBERTa and its kin  full attention, with a longer position table           the base itself
Llama, Mistral                                  full attention or one window                           Mistral
BERT, RoBERTa and its kin                       ``window`` and ``longformer``                          Longformer
BERT, RoBERTa and its kin, BigBird              ``bigbird`` with transformers' blocks                  BigBird
==============================================  =====================================================  ==================

Software that knows the architecture can serve the stock checkpoint without this package.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn

from ..engines.common.call import UNBOUNDED
from ..mechanisms import Mechanism
from ..mechanisms.bigbird import BigBird
from ..mechanisms.common.exact import full_of
from ..mechanisms.common.locality import band_of
from ..mechanisms.common.registry import prototype
from ..mechanisms.full import Full
from ..mechanisms.longformer import Longformer, LongformerOptions
from ..mechanisms.window import Window
from ..modeling.family.definition import FAMILIES, Family
from ..modeling.family.sliding_window import band_around, with_base_windows
from ..modeling.inference.pruning import whole_shapes, with_silent_heads
from .adopt import HEAD_GLOBALS, adoption_of
from .architectures import NAMES, OWN_FIELDS

ROBERTAS = frozenset(("roberta", "xlm-roberta", "camembert"))


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

    @property
    def base_class(self) -> str:
        """Name of the base class, ``"BertForMaskedLM"`` for a ``LongBertForMaskedLM``."""
        return self.family.base_of(self.class_name)

    @property
    def head(self) -> str:
        """The base class without the base's name: ``"ForMaskedLM"``; ``"Model"`` for the encoder alone."""
        return self.base_class.removeprefix(self.family.base_model_name.removesuffix("Model"))

    @cached_property
    def layers(self) -> tuple[Mechanism, ...]:
        """The mechanism of every layer."""
        return tuple(prototype(*self.config.long_attention.for_layer(layer)) for layer in range(self.config.attending[0]))


class Stock(ABC):
    """One stock architecture. All methods but `state_dict` read configs only."""

    families: ClassVar[frozenset[str]]
    """Base model types of the long models that it can hold."""
    stem: ClassVar[str] = ""
    """The beginning of the names of its classes. Empty for the base's classes."""
    heads: ClassVar[tuple[str, ...]] = ("Model",)
    """Heads of other bases whose tensors it can hold."""
    computes: ClassVar[tuple[type[Mechanism], ...]]
    """Mechanisms that its layers can compute, with some options."""
    words: ClassVar[str]
    """What every layer computes, for a refusal."""
    takes_globals: ClassVar[bool] = False
    """Whether its forward pass takes ``global_attention_mask``."""
    note: ClassVar[str] = ""
    """A remark for its users."""
    names: ClassVar[Mapping[str, Any]] = {}
    """Regular expressions for parts of the names of a long model's tensors -> the replacement."""

    def class_name(self, model: LongModel) -> str:
        """Name of the stock class with the same head, for example "LongformerForMaskedLM"."""
        return f"{self.stem}{model.head}" if self.stem else model.base_class

    @abstractmethod
    def layer(self, mechanism: Mechanism, model: LongModel) -> dict[str, Any] | None:
        """Config values with which a layer computes the same as ``mechanism``; ``None`` if there are none."""

    def refusal(self, model: LongModel) -> str:
        """Why it does not compute the same, as a sentence that names the layer. Empty if it does."""
        name, layers = self.class_name(model), [self.layer(mechanism, model) for mechanism in model.layers]
        for index, values in enumerate(layers):
            if values is None or values != layers[0]:
                return f"Layer {index} has {described(model.layers[index])}, and every layer of a {name} has {self.words}."
        if model.masked and not self.takes_globals:
            return f"A {name} takes no global_attention_mask; leave --global-attention-mask out."
        if name != model.base_class and model.head not in self.heads:
            head = f"The head of a {model.base_class} differs from that of {self.stem}"
            return f"{head}; export the encoder alone, or a model with another head."
        return ""

    def values(self, model: LongModel) -> dict[str, Any]:
        """Values of its config that differ from the long model's."""
        return self.layer(model.layers[0], model) or {}

    def config(self, model: LongModel) -> Any:
        """Its config, without the fields that only Long configs or the base have."""
        config_class: Any = getattr(transformers, self.class_name(model)).config_class
        only_base = set(model.family.base_config_class.__dataclass_fields__) - set(config_class.__dataclass_fields__)
        values = {**with_base_windows(model.config.to_dict()), **self.values(model)}
        values = {name: value for name, value in values.items() if name not in {*NAMES, *OWN_FIELDS, *only_base}}
        return config_class.from_dict({**values, "architectures": [self.class_name(model)]})

    def state_dict(self, long: nn.Module, model: LongModel) -> dict[str, Tensor]:
        """The tensors of the loaded long model under the stock names. Pruned heads are zeros, since stock layers have equally many."""
        config, shapes, state = self.config(model), whole_shapes(long), {}
        adoption = adoption_of({"model_type": config.model_type})
        for name, tensor in long.state_dict().items():
            values = with_silent_heads(tensor, shapes[name]) if name in shapes else tensor
            if adoption is not None and name.endswith("position_embeddings.weight"):  # rows before position 0
                before, after = (family.position_tables[0].offset_rows(config) for family in (model.family, FAMILIES[adoption.family]))
                values = values if before == after else nn.functional.pad(values[before:], (0, 0, after, 0))
            for pattern, replacement in self.names.items():
                name = re.sub(pattern, replacement, name)
            state[name] = values
        return state


class Base(Stock):
    """The base class of an encoder. Its position table is the long one."""

    families = ROBERTAS | {"bert", "electra", "distilbert"}
    computes, words = (Full,), "full attention"

    def layer(self, mechanism: Mechanism, model: LongModel) -> dict[str, Any] | None:
        band = band_of(mechanism, model.config.attending[1])
        return {} if band is not None and band[0] == UNBOUNDED else None


class Mistral(Stock):
    """Mistral, with one window for all layers, or none."""

    families = frozenset(("llama", "mistral"))
    stem, heads = "Mistral", ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    computes, words = (Full, Window), "full attention or the same window, and no biases"
    names: ClassVar = {r"^transformer\.": "model."}

    def layer(self, mechanism: Mechanism, model: LongModel) -> dict[str, Any] | None:
        band = band_of(mechanism, True)
        if band is None or getattr(model.config, "attention_bias", False) or getattr(model.config, "mlp_bias", False):
            return None
        return {"sliding_window": None if band[0] == UNBOUNDED else band[0] + 1}


class LongformerStock(Stock):
    """Longformer: RoBERTa's layers with windows, and separate projections for global tokens.

    Without ``separate_global``, the projections of the global tokens are copies of the layer's projections. If a head of Longformer
    chooses global tokens, these must be the config's global tokens.
    """

    families = ROBERTAS | {"bert"}
    stem, heads = "Longformer", ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    computes, takes_globals = (Longformer, Window), True
    words = "a window of two tokens or more, equally wide on both sides"
    names: ClassVar = {
        r"^cls\.predictions\.transform\.dense\.": "lm_head.dense.",
        r"^cls\.predictions\.transform\.LayerNorm\.": "lm_head.layer_norm.",
        r"^cls\.predictions\.": "lm_head.",
        r"^bert\.pooler\.dense\.": "classifier.dense.",  # Longformer's head for SequenceClassification has BERT's pooler inside
        r"^(bert|roberta)\.": "longformer.",
        r"\.long_attention\.separate\.(query|key|value)\.": r".\1_global.",
    }

    def layer(self, mechanism: Mechanism, model: LongModel) -> dict[str, Any] | None:
        width = 0 if model.config.attending[1] else band_around(mechanism)
        fits = width and (isinstance(mechanism, Longformer) or not model.masked)  # a window takes no mask of global tokens
        return {} if fits else None

    def refusal(self, model: LongModel) -> str:
        if (reason := super().refusal(model)) or model.masked:
            return reason
        name, advice = self.class_name(model), "export with --global-attention-mask and give every call that mask"
        if model.head == "ForQuestionAnswering" and model.base not in ROBERTAS:
            return f"A {name} expects three separators in every pair of texts and this {model.base_class} has two; {advice}."
        chosen = HEAD_GLOBALS.get(model.head, {})
        tokens, first = chosen.get("global_tokens", ()), "global_first_segment" in chosen
        by_ids = [getattr(model.config, field, None) for field in ("global_token_ids", "question_separator_id")]
        for index, mechanism in enumerate(model.layers):
            o: Any = mechanism.options if isinstance(mechanism, Longformer) else LongformerOptions(global_tokens=())
            rule = (tuple(o.global_tokens), o.global_first_segment, o.global_second_segment or any(o.global_token_ids))
            if rule != (tokens, first, False) or by_ids != [None, None]:
                changes = f"--option global_tokens={'0' if tokens else 'none'}" + " --option global_first_segment=true" * first
                reason = f"Layer {index} has other global tokens than a {name} by itself"
                return f"{reason}; convert with --mechanism longformer {changes}, or {advice}."
        return ""

    def values(self, model: LongModel) -> dict[str, Any]:
        pad = model.config.pad_token_id or 0
        separators = (getattr(model.layers[0].options, "separator_token_id", None), getattr(model.config, "sep_token_id", None))
        return {
            "max_position_embeddings": model.family.longest(model.config) + pad + 1,
            "attention_window": [band_around(mechanism) for mechanism in model.layers],
            "pad_token_id": pad,
            "sep_token_id": next((token for token in separators if token is not None), model.config.eos_token_id),
        }

    def state_dict(self, long: nn.Module, model: LongModel) -> dict[str, Tensor]:
        state = super().state_dict(long, model)
        if model.head == "ForSequenceClassification" and model.base == "bert":
            state |= {f"classifier.out_proj.{part}": state.pop(f"classifier.{part}") for part in ("weight", "bias")}
        for name, tensor in [*state.items()]:
            state.setdefault(re.sub(r"\.self\.(query|key|value)\.", r".self.\1_global.", name), tensor.clone())
        return state


class BigBirdStock(Stock):
    """BigBird, for layers with transformers' variant of `bigbird`."""

    families = ROBERTAS | {"bert", "big_bird"}
    stem, heads = "BigBird", ("Model", "ForMaskedLM", "ForTokenClassification")
    computes, words = (BigBird,), "'bigbird' with random_pattern=hf_eval, blocks_over=input, seed=0 and the same blocks"
    note = "transformers' BigBird computes full attention for good after its first input of at most 5 + 2 * num_random_blocks blocks"
    names: ClassVar = {
        r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
        r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
        r"^lm_head\.": "cls.predictions.",
        r"^roberta\.": "bert.",
        r"^pooler\.dense\.": "pooler.",
    }

    def layer(self, mechanism: Mechanism, model: LongModel) -> dict[str, Any] | None:
        o: Any = mechanism.options
        if not isinstance(mechanism, BigBird) or o.random_pattern == "seeded" or (o.blocks_over, o.seed, o.relative) != ("input", 0, None):
            return None
        return {"attention_type": "block_sparse", "block_size": o.block_size, "num_random_blocks": o.num_random_blocks}

    def values(self, model: LongModel) -> dict[str, Any]:
        fixed = {"use_bias": True, "rescale_embeddings": False, "max_position_embeddings": model.family.longest(model.config)}
        return {**({} if model.base == "big_bird" else fixed), **super().values(model)}


STOCKS = (Base(), Mistral(), LongformerStock(), BigBirdStock())


@dataclass(frozen=True)
class StockChoice:
    """The stock architecture for a long model, or ``None`` with a reason."""

    stock: Stock | None
    class_name: str = ""
    reason: str = ""

    def describe(self) -> str:
        """The choice as text, for a table."""
        if self.stock is None:
            return f"none: {self.reason}"
        return f"{self.class_name} of transformers" + (f" ({self.stock.note})" if self.stock.note else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        if self.stock is None:
            return {"class": None, "reason": self.reason}
        model_type = getattr(transformers, self.class_name).config_class.model_type
        return {"class": self.class_name, "model_type": model_type, **({"note": self.stock.note} if self.stock.note else {})}


def choose_stock(model: LongModel) -> StockChoice:
    """The stock architecture that computes what the model does. Otherwise the reason why there is none."""
    stocks = [stock for stock in STOCKS if model.base in stock.families]
    if not stocks:
        return StockChoice(None, reason=f"A {model.class_name} has none; BERT, RoBERTa and their kin, BigBird, Llama and Mistral have.")
    if (full := next(filter(None, map(full_of, model.layers)), None)) is not None:
        return StockChoice(None, reason=f"No stock architecture has exact_length={full.max_length}; convert with --option exact_length=0.")
    reasons = {stock: stock.refusal(model) for stock in stocks}
    for stock in stocks:
        if not reasons[stock]:
            return StockChoice(stock, stock.class_name(model))
    index = next((index for index, mechanism in enumerate(model.layers) if not isinstance(mechanism, Full)), 0)
    odd = model.layers[index]
    none = f"Layer {index} has {described(odd)}, and no stock architecture has it in the layers of a {model.base_class}."
    return StockChoice(None, reason=next((reasons[stock] for stock in stocks if isinstance(odd, stock.computes)), none))


def described(mechanism: Mechanism) -> str:
    """A mechanism with the options that are not its defaults: ``'window' with num_sinks=4``."""
    changed = mechanism.options.changed()
    return repr(mechanism.name) + (f" with {', '.join(changed)}" if changed else "")
