"""transformers' pipelines that recognise models by class name or model type, extended to Long models."""

from __future__ import annotations

from typing import Any

from transformers import AutomaticSpeechRecognitionPipeline, LayoutLMConfig, pipelines
from transformers.pipelines.document_question_answering import DocumentQuestionAnsweringPipeline, ModelType

from .family.registration import register_pipelines


class PageQuestionAnsweringPipeline(DocumentQuestionAnsweringPipeline):
    """transformers' pipeline, which treats subclasses of ``LayoutLMConfig`` as LayoutLM: their tokenizers take no
    boxes.

    The base class gives ``boxes=`` to the tokenizer of every config whose class has another name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model.config, LayoutLMConfig):
            self.model_type = ModelType.LayoutLM


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """transformers' pipeline, which decodes a Long model as its base: by its model type."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        config = model.config
        model_type = model.config.model_type
        config.model_type = getattr(config, "base_model_type", model_type)
        try:
            super().__init__(model, *args, **kwargs)
        finally:
            config.model_type = model_type


register_pipelines(pipelines)  # before transformers 5.23, a table of classes, which this module has only now
