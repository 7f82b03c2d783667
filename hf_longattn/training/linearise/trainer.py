"""The Trainer of both stages. It uses the model's own loss or a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_longattn.training.linearise.teacher import Teacher
from hf_longattn.training.old_trainer import LongTrainer, rows_of


class LineariseTrainer(LongTrainer):
    """Trains a converted model.

    Args:
        stage: 1 or 2.
        teacher: of the loss; ``None`` = it is the model's own.
        *args, **kwargs: Trainer's.
    """

    def __init__(self, *args: Any, stage: int, teacher: Teacher | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage, self.teacher = stage, teacher
        self.sums: dict[str, tuple[Any, Any]] = {}  # for each part of the loss: sums of its weighted values, and of the weights
        self.remove_callback(PrinterCallback)

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor | int:
        """Inputs in stage 1, labels in stage 2; with a teacher, what :meth:`Teacher.loss` compares."""
        if self.stage == 1:
            return rows_of(inputs)
        labels = super().items_of(inputs)
        return labels if self.teacher is None else self.teacher.items_of(inputs, labels)

    def mean_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        if self.teacher is not None and model.training:
            loss, parts, outputs = self.teacher.loss(model, inputs, self.accelerator.autocast())
        else:
            loss, outputs = super().mean_loss(model, inputs)
            layers = outputs.get("layer_losses") if isinstance(outputs, dict) else None
            parts = {} if layers is None else {"layers": layers}
        counts = torch.as_tensor(self.items_of(inputs), device=loss.device)
        for (name, part), share in zip(parts.items(), (counts / self.step_items).expand(len(parts)), strict=True):
            total, shares = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = total + part.detach() * share, shares + share
        return loss, outputs

    def advice(self) -> str:
        """The last good checkpoint, and what to type."""
        newest = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
        checkpoint = f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
        rate = "transfer" if self.stage == 1 else "finetune"
        return f"{checkpoint}; lower --{rate}-learning-rate{', then resume with --resume' if newest else ''}"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        means = {name: (total / shares).tolist() for name, (total, shares) in self.sums.items()}
        rounded = {name: [round(value, 6) for value in mean] if isinstance(mean, list) else round(mean, 6) for name, mean in means.items()}
        logs = {**logs, **rounded}  # type: ignore[dict-item]
        self.sums = {}
        super().log(logs, start_time)
