"""Genomes, whose tokens are bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_longattn.conversion.check import Comparison
from hf_longattn.conversion.plan import ConversionPlan, plan_texts
from hf_longattn.inputs.modality import InputSize, InputSizes, Modality
from hf_longattn.inputs.sized import check_sizes
from hf_longattn.reports import Check


class Genomes:
    """Random genomes."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one genome."""
        return {
            "input_ids": torch.randint(
                5, self.vocabulary, (1, size.tokens), generator=torch.Generator().manual_seed(0)
            )
        }

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return "random genomes"


class GenomeModality(Modality):
    """Genomes, as token ids."""

    noun, nouns, units = "genome", "genomes", "bases"
    settings = ("max_length",)

    def size(self, config: Any, value: Any) -> InputSize:
        return InputSize(value, tokens=value, words=f"{value:,} bases", name="bases")

    def sizes(self, config: Any) -> InputSizes:
        longest = self.family.longest(config)
        return self.between(config, min(512, longest), longest)

    def plan(self, source: Any, architecture: Any, request: Any) -> ConversionPlan:
        return plan_texts(source, architecture, request)

    def inputs(
        self, config: Any, folder: Path, text: tuple[str, str] | None = None, files: Path | None = None
    ) -> Genomes:
        return Genomes(config.vocab_size)

    def check(self, comparison: Comparison) -> list[Check]:
        return check_sizes(comparison)
