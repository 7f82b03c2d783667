"""The arguments of attention distillation."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import OptionError, flag
from hf_longattn.mechanisms.common.choice_text import read_choice
from hf_longattn.training.args import ModelArguments, argument, check_choices, check_least, check_positive
from hf_longattn.training.checkpoints import stage_checkpoints
from hf_longattn.training.old_lm import TextTrainingArguments
from hf_longattn.training.training_args import LongTrainingArguments

STAGES = ("both", "1", "2")
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")
"""Arguments that recompute activations. Since transformers 5.23, the first is an alias of the second."""
SINGLE_RUN = ("max_steps", "num_train_epochs", "learning_rate", "max_minutes", "eval_strategy", "eval_on_start")
"""Options of a run that has no stages."""
LM_LOSS, KL_LOSS, MIXED_LOSS = "lm", "kl", "mixed"
LORA_RATE, FULL_RATE = 2e-4, 5e-5
"""Learning rates of stage 2: The order of magnitude of LoLCATs for LoRA, and of BERT-base's fine-tuning (2e-5 to 5e-5) for all
parameters."""


@dataclass
class LineariseModelArguments(ModelArguments):
    """The student of attention distillation, and its teacher."""

    mechanism: str = argument(
        "", "MECHANISM[:NAME=VALUE,...] to convert --model to first, for example hedgehog; default: --model has been converted already."
    )
    option: list[str] = argument([], "Options of --mechanism, each NAME=VALUE.")
    layers: str = argument("", "Other mechanisms in some layers, as for `longattn convert --layers`, for example '0=full'.")
    teacher: str = argument(
        "", "The frozen original: its weights are used, with the mechanisms' parameters from --model; default: --model, whose weights the "
        "conversion has not changed."
    )  # fmt: skip

    use_peft: bool = argument(
        True, "Train LoRA updates of the attention projections in stage 2, merged in the model that is written; --no-use-peft trains all "
        "parameters."
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        if (self.option or self.layers) and not self.mechanism:
            raise OptionError("--option and --layers require --mechanism; leave them out for a converted --model.")
        if self.mechanism:
            self.attention()

    def attention(self) -> LongAttentionConfig:
        """The mechanism, its options and its layers as one configuration."""
        return LongAttentionConfig(layers=self.layers or None, **read_choice(self.mechanism, self.option))


@dataclass
class LineariseTrainingArguments(TextTrainingArguments):
    """``TrainingArguments`` of attention distillation in two stages."""

    shards: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor", "neftune_noise_alpha", *SINGLE_RUN)

    stage: str = argument("both", "1 (match softmax attention), 2 (fine-tune the model) or both.")
    transfer_steps: int = argument(400, "Optimiser steps of stage 1.")
    transfer_learning_rate: float = argument(1e-2, "Peak learning rate of stage 1.")
    finetune_steps: int = argument(800, "Optimiser steps of stage 2.")
    finetune_learning_rate: float | None = argument(
        None, "Peak learning rate of stage 2; default: 2e-4 with LoRA, 5e-5 with --no-use-peft, for models of base size (110M parameters)."
    )  # fmt: skip
    softmax_layers: float = argument(
        0.0, "Layers that keep softmax attention: a number, or a share below 1; restored one after another after stage 1, each time "
        "the one that lowers the KL divergence from the original most (after arXiv 2512.20569). 0 = none."
    )  # fmt: skip
    finetune_loss: str = argument(
        LM_LOSS, "Stage 2's loss: lm, the model's own on the text; kl, the KL divergence of its predictions from those of the original, "
        "which is the same checkpoint with softmax attention; mixed, both."
    )  # fmt: skip
    kl_factor: float = argument(1.0, "Factor of the KL divergence beside the language-model loss, in --finetune-loss mixed.")
    temperature: float = argument(1.0, "Temperature of both models' predictions in the KL divergence.")

    def check(self) -> None:
        if single_run := next((name for name in SINGLE_RUN if name in self.explicit), None):
            raise OptionError(
                f"{flag(single_run.removeprefix('num_train_'))} does not apply to the two stages of a distillation; give --transfer-steps, "
                "--transfer-learning-rate, --finetune-steps and --finetune-learning-rate."
            )
        super().check()
        check_choices(self, stage=STAGES, finetune_loss=(LM_LOSS, KL_LOSS, MIXED_LOSS))
        check_least(self, transfer_steps=1, finetune_steps=1)
        check_positive(self, "temperature", "kl_factor")
        if self.softmax_layers < 0 or (self.softmax_layers > 1 and self.softmax_layers % 1):
            raise OptionError(f"--softmax-layers must be a number of layers, or a share between 0 and 1, not {self.softmax_layers:g}.")
        if self.resume_from_checkpoint:
            raise OptionError("A distillation resumes from the latest checkpoints of its stages; give --resume in place of the checkpoint.")
        unused = [name for name in ("temperature", "kl_factor") if name in self.explicit]
        if unused and not self.needs_teacher:
            raise OptionError(f"{flag(unused[0])} has no effect with --finetune-loss lm; add --finetune-loss kl or mixed, or leave it out.")
        if self.finetune_loss == KL_LOSS and "kl_factor" in self.explicit:
            raise OptionError("--kl-factor has no effect with --finetune-loss kl; add --finetune-loss mixed, or leave it out.")

    @property
    def needs_teacher(self) -> bool:
        """Whether stage 2 compares with the original."""
        return self.finetune_loss != LM_LOSS

    @property
    def repository(self) -> str:
        """The name under which push_to_hub uploads, as Trainer has it."""
        return self.hub_model_id or self.folder.absolute().name

    def runs(self, stage: int) -> bool:
        """Whether this stage is to be run."""
        return self.stage in ("both", str(stage))

    def stage_args(self, stage: int, usual: float = LORA_RATE) -> LongTrainingArguments:
        """The arguments of one stage as of a single run; ``usual`` is stage 2's learning rate where none is given."""
        values = {field.name: getattr(self, field.name) for field in fields(LongTrainingArguments) if field.init}
        second = usual if self.finetune_learning_rate is None else self.finetune_learning_rate
        return LongTrainingArguments(
            **{
                **values,
                **{name: getattr(self, name) and stage == 2 for name in CHECKPOINTING if name in values},
                "include_num_input_tokens_seen": "non_padding",
                "label_names": ["labels"],
                "push_to_hub": False,
                "total_batch_size": 0,  # is in gradient_accumulation_steps
                "output_dir": str(stage_checkpoints(self.folder, stage)),
                "max_steps": self.transfer_steps if stage == 1 else self.finetune_steps,
                "learning_rate": self.transfer_learning_rate if stage == 1 else second,
            }
        )
