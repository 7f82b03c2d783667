"""transformers' pipelines that recognise models by name, extended to Long models."""

from __future__ import annotations

from typing import Any

from transformers import AutomaticSpeechRecognitionPipeline, LayoutLMConfig, WhisperConfig
from transformers.pipelines.document_question_answering import DocumentQuestionAnsweringPipeline, ModelType


class PageQuestionAnsweringPipeline(DocumentQuestionAnsweringPipeline):
    """transformers' pipeline, which treats subclasses of ``LayoutLMConfig`` as LayoutLM: their tokenizers take no boxes.

    The base class gives ``boxes=`` to the tokenizer of every config whose class has another name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model.config, LayoutLMConfig):
            self.model_type = ModelType.LayoutLM


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """transformers' pipeline, which treats a LongWhisper as Whisper: it merges chunks and returns timestamps.

    For other encoder-decoders, the base class joins the texts of overlapping chunks.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self._whisper = isinstance(model.config, WhisperConfig)
        super().__init__(model, *args, **kwargs)

    @property
    def type(self) -> str:
        """The base class's type of decoding."""
        return "seq2seq_whisper" if self._whisper else self._type

    @type.setter
    def type(self, value: str) -> None:
        self._type = value
