"""transformers' pipelines that ask for a base by name, for its Long models as well."""

from __future__ import annotations

from typing import Any

from transformers import AutomaticSpeechRecognitionPipeline, LayoutLMConfig, WhisperConfig
from transformers.pipelines.document_question_answering import DocumentQuestionAnsweringPipeline, ModelType


class PageQuestionAnsweringPipeline(DocumentQuestionAnsweringPipeline):
    """As transformers' own, which gives ``boxes=`` to the tokenizer of every model but one whose config's class is called
    ``LayoutLMConfig``; here its subclasses are read as it is, since their tokenizers take no boxes either."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model.config, LayoutLMConfig):
            self.model_type = ModelType.LayoutLM


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """As transformers' own, which merges chunks and returns timestamps of models of type ``whisper`` alone; here of a LongWhisper as well.

    Of other encoder-decoders, the texts of overlapping chunks are put one after the other.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self._whisper = isinstance(model.config, WhisperConfig)
        super().__init__(model, *args, **kwargs)

    @property
    def type(self) -> str:
        """How transformers' own decodes."""
        return "seq2seq_whisper" if self._whisper else self._type

    @type.setter
    def type(self, value: str) -> None:
        self._type = value
