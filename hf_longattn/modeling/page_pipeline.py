"""transformers' pipeline "document-question-answering" for LongLayoutLM."""

from __future__ import annotations

from typing import Any

from transformers import LayoutLMConfig
from transformers.pipelines.document_question_answering import DocumentQuestionAnsweringPipeline, ModelType


class PageQuestionAnsweringPipeline(DocumentQuestionAnsweringPipeline):
    """As transformers' own, which gives ``boxes=`` to the tokenizer of every model but one whose config's class is called
    ``LayoutLMConfig``; here its subclasses are read as it is, since their tokenizers take no boxes either."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.model.config, LayoutLMConfig):
            self.model_type = ModelType.LayoutLM
