"""Conversions of models that read genomes, whose tokens are bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_longattn.conversion.convert import MODALITIES
from hf_longattn.conversion.modality import Modality
from hf_longattn.conversion.plan import ConversionPlan, plan_texts
from hf_longattn.conversion.sized import check_sizes
from hf_longattn.modeling.family.definition import Family
from hf_longattn.modeling.family.input_spec import InputSize
from hf_longattn.reports import Check


class Genomes:
    """Random genomes."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def at(self, size: InputSize) -> dict[str, Any]:
        """The arguments of ``forward`` for one genome."""
        random = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(5, self.vocabulary, (1, size.tokens), generator=random)}

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return "random genomes"


def genome_inputs(
    family: Family, config: Any, folder: Path, text: tuple[str, str], recording: Path | None = None
) -> Genomes:
    return Genomes(config.vocab_size)


def check_no_tokenizer(plan: ConversionPlan, folder: Path, inputs: Genomes) -> list[Check]:
    return []


MODALITIES["genome"] = Modality(("max_length",), plan_texts, genome_inputs, check_no_tokenizer, check_sizes)
