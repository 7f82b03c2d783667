"""A question-answering model as something that answers one question about one document."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.modeling.token_globals import takes_globals, token_rule
from hf_longattn.training import QACollator, QAFormat, encode_qa, n_best_spans


class QAReader:
    """Reads a document whole, cut or in windows, as its format says, and answers with the best span.

    Args:
        name: the row's name in tables.
        model: a question-answering model.
        tokenizer: its tokenizer.
        form: how documents become inputs.
        seed: the seed that the model was trained with, where rows with several seeds are averaged.
        batch_size: windows per forward pass.
        dtype: autocast to this type; None = the model's own.
        max_answer_tokens: longest answer.
        null_threshold: answer "" when the best span's score minus that of "no answer" is below this; None = always answer.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        form: QAFormat,
        *,
        seed: int | None = None,
        batch_size: int = 8,
        dtype: torch.dtype | None = None,
        max_answer_tokens: int = 30,
        null_threshold: float | None = None,
    ) -> None:
        if form.global_question and (token_rule(model) is not None or not takes_globals(model)):  # it marks them itself, or has none
            form = dataclasses.replace(form, global_question=False)
        self.name, self.model, self.tokenizer, self.form, self.seed = name, model.eval(), tokenizer, form, seed
        self.batch_size, self.dtype = batch_size, dtype
        self.max_answer_tokens, self.null_threshold = max_answer_tokens, null_threshold
        self.collate = QACollator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)

    def answer(self, record: Mapping[str, Any]) -> str:
        """Return the answer's text, "" for none."""
        features = encode_qa({**record, "answers": None, "trail": None}, self.tokenizer, self.form)
        starts, ends = [], []
        for place in range(0, len(features), self.batch_size):
            outputs = self._forward(self.collate(features[place : place + self.batch_size]))
            starts.extend(outputs.start_logits.float().cpu().numpy())
            ends.extend(outputs.end_logits.float().cpu().numpy())
        spans = n_best_spans(record["context"], features, starts, ends, n_best=5, max_answer_tokens=self.max_answer_tokens)
        if not spans or (self.null_threshold is not None and spans[0].score < self.null_threshold):
            return ""
        return spans[0].text

    @torch.inference_mode()
    def _forward(self, batch: dict[str, Any]) -> Any:
        device = self.model.device
        inputs = {key: value.to(device) for key, value in batch.items() if key in self.collate.model_inputs}
        with torch.autocast(device.type, self.dtype) if self.dtype is not None else nullcontext():
            return self.model(**inputs)


def truncated(max_length: int = 512, max_question_tokens: int = 64) -> QAFormat:
    """The document cut to what fits."""
    return QAFormat(max_length, max_question_tokens=max_question_tokens)


def windows(max_length: int = 512, stride: int = 128, max_question_tokens: int = 64) -> QAFormat:
    """Windows of ``max_length`` that share ``stride`` tokens."""
    return QAFormat(max_length, stride, max_question_tokens=max_question_tokens)


def whole(max_length: int, stride: int = 128, max_question_tokens: int = 64) -> QAFormat:
    """The whole document; beyond ``max_length`` in windows that share ``stride`` tokens, a quarter at most. The question is global in
    models that have global tokens."""
    return QAFormat(max_length, min(stride, max_length // 4), global_question=True, max_question_tokens=max_question_tokens)
