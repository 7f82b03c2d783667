"""The settings of an attention transfer."""

# ruff: noqa: RUF009 (`setting` makes a field)
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.base import DENSE_LIMIT
from hf_longattn.mechanisms.composite import read_choice, read_options
from hf_longattn.training.lm_settings import TextRunSettings
from hf_longattn.training.settings import setting

STAGES = ("both", "1", "2")


@dataclass
class TransferSettings(TextRunSettings):
    """What to transfer, on which text, and for how long."""

    mechanism: str = setting(
        "", "MECHANISM[:NAME=VALUE,...] to put into --model first, for example hedgehog; default: --model has been converted already."
    )
    option: list[str] = setting([], "Options of --mechanism, each NAME=VALUE.")
    layers: str = setting("", "Another mechanism in some layers, as `longattn convert --layers` takes it, for example '0=full'.")
    teacher: str = setting(
        "", "The frozen original: its weights are taken, with the mechanisms' own parameters from --model; default: --model, whose weights "
        "a conversion has left as they were."
    )  # fmt: skip
    stage: str = setting("both", "1 (match the softmax attention), 2 (fine-tune by the language-model loss) or both.")
    transfer_steps: int = setting(400, "Optimiser steps of stage 1.")
    transfer_learning_rate: float = setting(1e-2, "Highest learning rate of stage 1.")
    output_factor: float = setting(1.0, "Factor of the squared error of the attention outputs in stage 1.")
    weights_factor: float = setting(0.0, "Factor of the cross-entropy of the attention weights in stage 1 (Hedgehog); takes N×N memory.")
    finetune_steps: int = setting(800, "Optimiser steps of stage 2.")
    finetune_learning_rate: float = setting(2e-4, "Highest learning rate of stage 2.")
    full: bool = setting(False, "Train all parameters in stage 2, in place of LoRA on the q, k, v and output projections.")
    lora_rank: int = setting(8, "Rank of LoRA's updates.")
    lora_alpha: float = setting(16.0, "LoRA's scale: an update counts alpha / rank.")
    held_out_inputs: int = setting(32, "Inputs on which the report's losses are measured.")

    def check(self) -> None:
        """Refuse settings that contradict one another."""
        super().check()
        if self.stage not in STAGES:
            raise OptionError(f"stage must be one of {', '.join(STAGES)}, not {self.stage!r}")
        for name in ("transfer_steps", "finetune_steps", "lora_rank", "held_out_inputs"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, not {getattr(self, name)}")
        if min(self.output_factor, self.weights_factor) < 0 or self.output_factor + self.weights_factor == 0:
            raise OptionError("output_factor and weights_factor must be 0 or more, and one of them above 0, so that stage 1 has a loss")
        if (self.option or self.layers) and not self.mechanism:
            raise OptionError(
                "--option and --layers belong to a mechanism; say --mechanism NAME, or leave them out for a converted --model"
            )
        if self.mechanism:
            self.attention()
        if not self.resume and any(self.checkpoints(stage).exists() for stage in (1, 2)):
            raise OptionError(f"{self.output} holds checkpoints of an earlier run; say --resume to go on with it, or another --output")

    def check_length(self, length: int) -> None:
        """Refuse inputs for whose attention weights there is no dense matrix."""
        if self.weights_factor and length > DENSE_LIMIT:
            raise OptionError(
                f"weights_factor compares dense attention weights, which there are up to {DENSE_LIMIT} tokens, not for {length}; "
                f"say --max-length {DENSE_LIMIT} or --weights-factor 0"
            )

    def attention(self) -> LongAttentionConfig:
        """The mechanism, its options and its layers as one configuration; raises what that raises."""
        choice: dict[str, Any] = {**read_choice(self.mechanism), **read_options(",".join(self.option))}
        return LongAttentionConfig(layers=self.layers or None, **choice)

    def runs(self, stage: int) -> bool:
        """Whether this stage is asked for."""
        return self.stage in ("both", str(stage))

    def of_stage(self, stage: int) -> SimpleNamespace:
        """The settings in the form of a single run, as ``training_arguments`` reads them."""
        steps = self.transfer_steps if stage == 1 else self.finetune_steps
        rate = self.transfer_learning_rate if stage == 1 else self.finetune_learning_rate
        return SimpleNamespace(**{**vars(self), "max_steps": steps, "learning_rate": rate, "epochs": None})

    def checkpoints(self, stage: int) -> Path:
        """The folder of a stage's checkpoints to resume from."""
        return Path(self.output) / "checkpoints" / f"stage{stage}"
