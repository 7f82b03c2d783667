"""Common tensor names of encoders like BERT. Twins derive the names of their own architecture from them.

A tensor of the encoder is called ``body.`` and BERT's name; names in heads start with ``mlm.dense``, ``mlm.norm``, ``mlm.decoder``,
``mlm.bias``, ``class.dense``, ``class.out``, ``classifier`` or ``qa_outputs``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import LongModel, NativeTwin, stem_of

ROBERTAS = frozenset(("roberta", "xlm-roberta", "camembert"))
ENCODERS = ROBERTAS | {"bert", "electra", "distilbert"}
PREFIX = re.compile(r"^(bert|roberta|electra|distilbert)\.")
HEADS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
MLM = {
    r"^(cls\.predictions\.transform|generator_predictions|lm_head)\.dense\.": "mlm.dense.",
    r"^(cls\.predictions\.transform\.LayerNorm|generator_predictions\.LayerNorm|lm_head\.layer_norm|vocab_layer_norm)\.": "mlm.norm.",
    r"^vocab_transform\.": "mlm.dense.",
    r"^(cls\.predictions|lm_head)\.decoder\.": "mlm.decoder.",
    r"^(vocab_projector|generator_lm_head)\.weight$": "mlm.decoder.weight",
    r"^(vocab_projector|generator_lm_head)\.bias$": "mlm.bias",
    r"^(cls\.predictions|lm_head)\.bias$": "mlm.bias",
}
DISTILBERT = {
    r"^transformer\.layer\.(\d+)\.": r"encoder.layer.\1.",
    r"\.attention\.q_lin\.": ".attention.self.query.",
    r"\.attention\.k_lin\.": ".attention.self.key.",
    r"\.attention\.v_lin\.": ".attention.self.value.",
    r"\.attention\.out_lin\.": ".attention.output.dense.",
    r"\.attention\.long_attention\.": ".attention.self.long_attention.",
    r"\.sa_layer_norm\.": ".attention.output.LayerNorm.",
    r"\.ffn\.lin1\.": ".intermediate.dense.",
    r"\.ffn\.lin2\.": ".output.dense.",
    r"\.output_layer_norm\.": ".output.LayerNorm.",
}


def head_of(model: LongModel) -> str:
    """The head without the base's name: ``"MaskedLM"``; ``"Model"`` for the encoder alone."""
    return next((head for head in HEADS if model.head.endswith(f"For{head}")), "Model" if model.head.endswith("Model") else model.head)


def common_name(name: str, model: LongModel) -> str:
    """The common name of a tensor of the long model."""
    head = head_of(model)
    inner = PREFIX.sub("", name)
    if head == "Model" or inner != name:
        if model.base == "distilbert":
            inner = _replaced(inner, DISTILBERT)
        if head == "SequenceClassification" and inner.startswith("pooler.dense."):  # BERT's head reads the pooler
            return inner.replace("pooler.", "class.", 1)
        return f"body.{inner}"
    if head == "MaskedLM":
        return _replaced(name, MLM)
    if head == "SequenceClassification":
        name = re.sub(r"^classifier\.(weight|bias)$", r"class.out.\1", name)
        return name.replace("classifier.dense.", "class.dense.").replace("classifier.out_proj.", "class.out.")
    return name


def _replaced(name: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return name


def leading_rows(model: LongModel) -> int:
    """Rows of the position table that are not positions."""
    return model.family.position_tables[0].offset_rows(model.config)


def with_leading(before: int, after: int) -> Callable[[Tensor], Tensor] | None:
    """A function that replaces the first rows of a table by zeros. ``before`` rows become ``after``; ``None`` if the numbers are equal."""
    if before == after:
        return None
    return lambda table: torch.cat([table.new_zeros(after, table.shape[1]), table[before:]])


def encoder_values(model: LongModel, leading: int, *, counted: bool) -> dict[str, Any]:
    """The values of the config of an encoder like BERT.

    leading: rows of its position table that are not positions; counted: whether ``max_position_embeddings`` includes them.
    """
    values, config = model.values(), model.config
    values |= {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "max_position_embeddings": model.length + leading * counted,
    }
    if model.base == "distilbert":
        values |= {
            "intermediate_size": config.hidden_dim,
            "hidden_act": config.activation,
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.attention_dropout,
            "layer_norm_eps": 1e-12,
            "type_vocab_size": 1,
        }
    return values


def encoder_refusal(model: LongModel, name: str, heads: tuple[str, ...]) -> str | None:
    """Reason why the architecture ``name`` cannot hold the encoder: causal, projected embeddings, or another head. Else ``None``."""
    config, head = model.config, head_of(model)
    if model.causal or getattr(config, "add_cross_attention", False):
        return f"Layer 0 is a decoder's (is_decoder=True), and {name} is an encoder."
    if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
        return f"The embeddings have {config.embedding_size} dimensions and layer 0 has {config.hidden_size}, which are equal in {name}."
    if head not in ("Model", *heads):
        return f"The head of a {model.head} differs from that of {name}; export the encoder alone, or a model with another head."
    return None


def layer_activation(model: LongModel) -> str:
    """The activation in the layers."""
    return str(model.config.activation if model.base == "distilbert" else model.config.hidden_act)


def mlm_activation(model: LongModel) -> str:
    """The activation inside the head for masked tokens."""
    return layer_activation(model) if model.base in ("bert", "distilbert") else "gelu"


def mlm_refusal(model: LongModel, name: str) -> str | None:
    """Reason why the masked-LM head of ``name``, which has the activation of the layers, differs. ``None`` if it does not."""
    activation = layer_activation(model)
    if head_of(model) != "MaskedLM" or mlm_activation(model) == activation:
        return None
    return f"The head of the {model.head} has the activation {mlm_activation(model)!r}, and {name}'s that of layer 0, {activation!r}."


def token_types(model: LongModel) -> dict[str, Callable[[tuple[int, ...]], Tensor]]:
    """A table of token types, with zeros, for a model without one. Empty for other models."""
    return {"body.embeddings.token_type_embeddings.weight": torch.zeros} if model.base == "distilbert" else {}


class EncoderTwin(NativeTwin):
    """A twin for encoders like BERT, and for long models of its own architecture."""

    prefix: ClassVar[str]
    """Prefix of the encoder's tensors in models with a head."""
    heads: ClassVar[tuple[str, ...]]
    """Heads that the twin can hold; of other models, it holds the encoder alone."""
    names: ClassVar[Mapping[str, str]]
    """Start of a tensor's common name in a head -> its start in the twin."""

    def class_name(self, model: LongModel) -> str:
        if model.base == self.model_type:
            return model.head
        head = head_of(model)
        return f"{stem_of(self.model_type)}{f'For{head}' if head in self.heads else 'Model'}"

    def own_name(self, common: str, model: LongModel) -> str:
        """Translate a common name."""
        if common.startswith("body."):
            return common.replace("body.", "" if head_of(model) == "Model" else f"{self.prefix}.", 1)
        start = next(filter(common.startswith, self.names), "")
        return self.names.get(start, "") + common.removeprefix(start)

    def added(self, model: LongModel) -> Mapping[str, Callable[[tuple[int, ...]], Tensor]]:
        return {self.own_name(name, model): values for name, values in token_types(model).items()}
