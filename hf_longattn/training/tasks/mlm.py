"""Continue training an encoder on long text."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_longattn.training.lm import LMDataArguments, LMModelArguments, TextTrainingArguments, describe_lm_result, finetune_lm
from hf_longattn.training.task import Task


@dataclass
class MLMModelArguments(LMModelArguments):
    """An encoder, which predicts masked tokens."""

    objective: str = field(default="mlm", init=False)


@dataclass
class MLMDataArguments(LMDataArguments):
    """Text for masked-token prediction."""


MLM = (MLMModelArguments, MLMDataArguments, TextTrainingArguments)
TASK = Task(arguments=MLM, train=finetune_lm, result=describe_lm_result, evaluation="Score the predictions of masked tokens.")
