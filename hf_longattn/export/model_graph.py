"""Text models as one graph over the whole text: the inputs for tracing, and for comparing the written file."""

from __future__ import annotations

import bisect
import inspect
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..conversion.architectures import attached_mechanisms
from ..conversion.pooling import SentencePooling
from ..inputs.text import VerificationText
from ..mechanisms import Mechanism
from ..mechanisms.common.exact import for_length
from ..modeling.family.definition import known_family
from .graphs import Comparison, ExportedGraph, Int8Inputs

MIN_LENGTHS = (2, 129, 513)
"""Minimum lengths to try: PyTorch specialises on sizes of 0 and 1, and some mechanisms need a few blocks to be one graph."""
EXAMPLE_TOKENS = 600
"""Number of tokens of the traced text, unless the minimum length is greater."""
COMPARED_SHAPES = ((3, 7), (2, 333), (1, 2048))
"""Batch sizes and lengths to compare. The graph's minimum, mean or maximum length replaces lengths that the graph does not take."""
INT8_SHAPES = ((6, 512), (1, 2048))
"""Batch size and length for comparing an int8 copy (a seventh text would be padding only), and for timing it."""


class ModelGraph(ExportedGraph):
    """A model as a function of token ids and their mask.

    names: names of the inputs.
    """

    advised = "longformer"

    def __init__(self, model: nn.Module, words: VerificationText, names: tuple[str, ...], pooling: SentencePooling | None = None) -> None:
        super().__init__(model, {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else None)
        self.words, self.names, self.pooling = words, names, pooling

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        bbox: Tensor | None = None,
        xpath_tags_seq: Tensor | None = None,
        xpath_subs_seq: Tensor | None = None,
    ) -> dict[str, Tensor]:
        tensors = self.run(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
            global_attention_mask=global_attention_mask, decoder_input_ids=decoder_input_ids,
            bbox=bbox, xpath_tags_seq=xpath_tags_seq, xpath_subs_seq=xpath_subs_seq,
        )  # fmt: skip
        if self.pooling is not None and "last_hidden_state" in tensors:
            tensors["sentence_embedding"] = self.pooling(tensors["last_hidden_state"], attention_mask)
        return tensors

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.names

    def shortest_lengths(self, max_length: int) -> list[int]:
        return least_lengths(self, max_length)

    def traceable(self, shortest: int, max_length: int) -> tuple[dict[str, Tensor], dict[str, dict[int, Any]]]:
        example = example_inputs(self.model, self.names, self.words, 2, min(max_length, max(EXAMPLE_TOKENS, shortest + 1)))
        pages = page_inputs(self.model)
        return example, free_sizes(example, shortest, max_length, longest_decoded(self.model, max_length), pages)

    def comparisons(self, limits: tuple[int, int]) -> Iterator[Comparison]:
        for number, (batch, length) in enumerate(COMPARED_SHAPES):
            if length < limits[0] and number:
                length = sum(limits) // 2
            yield compared_texts(example_inputs(self.model, self.names, self.words, batch, min(max(length, limits[0]), limits[1])))

    def int8_inputs(self, limits: tuple[int, int]) -> Int8Inputs:
        texts = [(batch, min(max(length, limits[0]), limits[1])) for batch, length in INT8_SHAPES]
        compared, timed = (example_inputs(self.model, self.names, self.words, *text, repeated=False) for text in texts)
        return Int8Inputs(compared, {"texts": texts[0][0], "tokens": texts[0][1]}, timed, {"tokens": texts[1][1]})


def least_lengths(graph: nn.Module, max_length: int) -> list[int]:
    """``MIN_LENGTHS``, and each mechanism's first length at which it is not full attention, which is a separate path."""
    ends = set(MIN_LENGTHS)
    for mechanism in attached_mechanisms(graph).values():
        for causal in (False, True):
            ends.add(1 + bisect.bisect_left(range(1, max_length + 1), True, key=partial(_uncovered, mechanism, causal)))
    return sorted(length for length in ends if 2 <= length < max_length)


def _uncovered(mechanism: Mechanism, causal: bool, length: int) -> bool:
    return not for_length(mechanism, length, causal).covers(length, causal)


def longest_decoded(model: Any, max_length: int) -> int:
    """Maximum length of the decoder's input, if the encoder takes ``max_length``."""
    return min(max_length, getattr(model.config, "max_decoder_position_embeddings", max_length))


def page_inputs(model: Any) -> tuple[str, ...]:
    """Names of a model's inputs ``(B, N, width)`` besides token ids, such as ``bbox``."""
    family = known_family(model.config)
    return () if family is None else tuple(family.rule.further)


def free_sizes(
    example: dict[str, Tensor], shortest: int, max_length: int, decoder_max: int, pages: Collection[str] = ()
) -> dict[str, dict[int, Any]]:
    """Dynamic axes of each input ``(B, N)`` or ``(B, choices, N)``. ``pages`` names inputs ``(B, N, width)``, whose width is fixed."""
    batch, choices = torch.export.Dim("batch", min=1), torch.export.Dim("choices", min=1)
    length = torch.export.Dim("length", min=shortest, max=max_length)
    decoder_length = torch.export.Dim("decoder_length", min=2, max=decoder_max)
    sizes = {}
    for name, value in example.items():
        tokens = decoder_length if name.startswith("decoder") else length
        several = value.dim() == 3 and name not in pages
        sizes[name] = {0: batch, **({1: choices} if several else {}), 1 + several: tokens}
    return sizes


def example_inputs(
    model: Any, names: tuple[str, ...], words: VerificationText, batch: int, length: int, repeated: bool = True
) -> dict[str, Tensor]:
    """Texts of different lengths, right-padded to ``(batch, length)``, or to ``(batch, choices, length)`` for multiple choice.

    repeated: each starts at the beginning of the text; otherwise they are consecutive parts of the text.
    """
    ids = words.tokens(length).repeat(batch, 1) if repeated else words.tokens(batch * length).view(batch, length).clone()
    ids[:, 0] = ids[0, 0]
    real = torch.tensor([length - (row + 1) * length // 7 for row in range(batch)])[:, None]
    mask = torch.arange(length)[None] < real
    config = model.config
    ids = torch.where(mask, ids, config.pad_token_id or 0)
    if getattr(config, "is_encoder_decoder", False):  # heads that read the whole text in the decoder need its end token
        ids = ids.masked_fill(ids == config.eos_token_id, min(5, config.vocab_size - 1)).scatter(1, real - 1, config.eos_token_id)
    separator = getattr(config, "question_separator_id", None)
    if separator is not None and length > 2:  # a question, which the graph has to find
        ids = ids.index_fill(1, torch.tensor([min(length // 4, 8)]), separator)
    if getattr(config, "global_token_ids", None) and length > 4:
        ids = ids.index_fill(1, torch.tensor([length // 2]), config.global_token_ids[0])
    family = known_family(config)
    further = {} if family is None else family.rule.further_inputs(config, batch, length)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), **further}
    if "token_type_ids" in names:
        second = torch.arange(length)[None] >= length // 2  # a pair of texts, where the model has two types
        inputs["token_type_ids"] = second.long() * mask * (getattr(config, "type_vocab_size", 1) > 1)
    if "global_attention_mask" in names:
        inputs["global_attention_mask"] = (torch.arange(length)[None] < 2 + torch.arange(batch)[:, None]).long() * mask
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: value[:, None].repeat(1, 2, 1) for name, value in inputs.items()}
    if "decoder_input_ids" in names:
        text_in_decoder = any(head in type(model).__name__ for head in ("SequenceClassification", "QuestionAnswering"))
        decoded = length if text_in_decoder else min(max(2, length // 2), longest_decoded(model, length))
        inputs["decoder_input_ids"] = ids[:, :decoded].contiguous()
    return inputs


def compared_texts(inputs: dict[str, Tensor]) -> Comparison:
    """Comparison of the outputs for these texts, except at padding."""
    batch, length = inputs["input_ids"].shape[0], inputs["input_ids"].shape[-1]
    mask = inputs["attention_mask"] != 0

    def real(output: Tensor) -> Any:
        return mask if output.shape[: mask.dim()] == mask.shape else ...  # outputs at padding are undefined

    return Comparison(inputs, f"{batch} × {length:,} tokens with padding", {"batch": batch, "length": length}, real)
