"""Continue training a decoder on long text.

It learns to predict the next token. With ``--segments N`` each document is read segment by segment with the model's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_longattn.training.lm import LMDataArguments, LMModelArguments, TextTrainingArguments, describe_lm_result, finetune_lm
from hf_longattn.training.task import Task


@dataclass
class CLMModelArguments(LMModelArguments):
    """A decoder, which predicts the next token."""

    objective: str = field(default="clm", init=False)


@dataclass
class CLMDataArguments(LMDataArguments):
    """Text for next-token prediction."""

    mask_probability: float = field(default=0.15, init=False)


CLM = (CLMModelArguments, CLMDataArguments, TextTrainingArguments)
TASK = Task(arguments=CLM, train=finetune_lm, result=describe_lm_result, evaluation="Score the predictions of next tokens.")
