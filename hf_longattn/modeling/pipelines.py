"""transformers' pipelines that recognise models by class name or model type, extended to Long models."""

from __future__ import annotations

from typing import Any

from transformers import AutomaticSpeechRecognitionPipeline, LayoutLMConfig, pipelines
from transformers.pipelines.document_question_answering import DocumentQuestionAnsweringPipeline, ModelType

from .family.registration import register_pipelines


class PageQuestionAnsweringPipeline(DocumentQuestionAnsweringPipeline):
    """transformers' pipeline for questions about a page, in which Long LayoutLM models count as LayoutLM.

    The base class recognises LayoutLM by the name of its config class. To the tokenizers of all other models, it
    passes ``boxes=``, which LayoutLM's tokenizer does not take.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model.config, LayoutLMConfig):
            self.model_type = ModelType.LayoutLM


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """transformers' pipeline for speech recognition, in which a Long model has its base's model type. By the model
    type, the pipeline chooses how to decode."""

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        config = model.config
        model_type = config.model_type
        config.model_type = getattr(config, "base_model_type", model_type)
        try:
            super().__init__(model, *args, **kwargs)
        finally:
            config.model_type = model_type


# Before transformers 5.23, its table of pipelines has classes, not names. They can be entered only now.
register_pipelines(pipelines)
