"""Texts, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..conversion.check import Comparison
from ..conversion.check_texts import check_texts
from ..conversion.plan import ConversionPlan, plan_texts
from ..mechanisms import Mechanism
from ..mechanisms.common.masked import needs_training_by
from ..reports import Check
from .modality import AUTO, Example, InputSize, InputSizes, Modality
from .tokenizer import TOKENIZER_FILES, VerificationText, check_tokenizer, excerpt, load_tokenizer

USUAL_LENGTH = 512
"""Maximum tokens of most short models."""


class TextModality(Modality):
    """Texts, as token ids."""

    noun, nouns = "text", "texts"
    settings: Sequence[str] = ("max_length", "max_decoder_length", "decoder_long_attention", "verify_text")

    def size(self, config: Any, value: Any) -> InputSize:
        return InputSize(value, value, f"{value} tokens" if value else "any number of tokens")

    def longest(self, config: Any) -> int:
        """Maximum length of a text, in tokens."""
        if self.family is not None:
            return self.family.longest(config)
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or USUAL_LENGTH

    def sizes(self, config: Any) -> InputSizes:
        """Lengths from :data:`USUAL_LENGTH` to the maximum of this model."""
        return self.between(config, min(USUAL_LENGTH, self.longest(config)), self.longest(config))

    def untrained(self, sizes: InputSizes, mechanism: Mechanism, strategy: str, positions: str, causal: bool) -> str:
        if strategy.startswith("rope:") and positions == AUTO:  # the conversion chooses rope scaling by the mechanism
            return ""
        return needs_training_by(mechanism, strategy, sizes.old.tokens, sizes.new.tokens, causal)

    def config_of(self, values: Mapping[str, Any]) -> Any:
        return SimpleNamespace(**values) if self.family is None else super().config_of(values)

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        return plan_texts(source, architecture, request)

    def inputs(self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None) -> Any:
        assert text is not None
        end = getattr(config, "eos_token_id", None)
        end = end if isinstance(end, int) and end < config.vocab_size else None
        tokenizer = load_tokenizer(folder, config)
        return VerificationText(
            excerpt(text[0], self.family.longest(config)), text[1], tokenizer, config.vocab_size, end=end
        )

    def processor(self, plan: Any, folder: Path, inputs: VerificationText) -> list[Check]:
        return check_tokenizer(plan, folder, inputs.tokenizer, inputs.text)

    def check(self, comparison: Comparison) -> list[Check]:
        return check_texts(comparison)

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        """Code for a card. For models of pages with word boxes, it only loads the tokenizer."""
        reader = (
            ("tokenizer", "AutoTokenizer")
            if any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
            else None
        )
        line = (
            f'inputs = tokenizer("A long document starts here. " * 50, truncation=True, max_length={length}, '
            'return_tensors="pt")'
        )
        of_pages = self.family is not None and self.family.spec.further
        return Example("feature-extraction", reader, "" if reader is None or of_pages else line)
