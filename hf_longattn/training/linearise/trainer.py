"""The Trainer of both stages. It uses the model's own loss or a teacher's, and stops at the first NaN."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_longattn.modeling.attach.attention_sites import attention_sites
from hf_longattn.training.linearise.teacher import Teacher
from hf_longattn.training.trainer import DivergenceError, LongTrainer, rows_of

LAYER = re.compile(r".*?\.\d+\.")
"""The part of an attention module's name that its whole layer shares."""


class LineariseTrainer(LongTrainer):
    """Trains the mechanisms of a converted model, and names the layer of a loss or gradient that is not finite.

    Args:
        stage: 1 or 2.
        teacher: of the loss; ``None`` = it is the model's own.
        *args, **kwargs: Trainer's.
    """

    def __init__(self, *args: Any, stage: int, teacher: Teacher | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage, self.teacher = stage, teacher
        self.sums: dict[str, tuple[Any, Any]] = {}  # for each part of the loss: sums of its weighted values, and of the weights
        self.gradients: dict[str, Tensor] = {}
        inner: Any = getattr(self.model, "module", self.model)  # in DistributedDataParallel, and in stage 1's wrapper
        inner = getattr(inner, "model", inner) if hasattr(inner, "students") else inner
        self.sites = [site for site in attention_sites(inner) if not site.cross]
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

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
        self.gradients = {name: gradient.float().sum() for name, gradient in gradients.items()}  # before they are clipped
        return loss

    def diverged(self, what: str) -> None:
        """Stop the training with a sentence."""
        where = self._layer_of_loss() if what == "The loss" else self._layer_of_gradient()
        step = f"step {self.state.global_step + 1} of stage {self.stage}"
        raise DivergenceError(f"{what} is not a finite number at {step}, in {where}; {self.advice()}.")

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

    def _layer_of_loss(self) -> str:
        """The first layer with a non-finite loss or attention output in this step."""
        for batch in self.step_batches:
            finite: list[bool] = []

            def note(_: nn.Module, __: Any, output: Any, finite: list[bool] = finite) -> None:
                finite.append(bool(torch.isfinite(output[0] if isinstance(output, tuple) else output).all()))

            hooks = [site.module.register_forward_hook(note) for site in self.sites]
            try:
                with torch.no_grad():
                    outputs = self.model(**batch)
            finally:
                for hook in hooks:
                    hook.remove()
            layers = outputs.get("layer_losses") if isinstance(outputs, dict) else None
            finite = finite if layers is None else torch.isfinite(layers).tolist()
            if not all(finite):
                return self._named(finite.index(False))
        return "the parts after the attention layers"

    def _layer_of_gradient(self) -> str:
        """The layer of the parameter that comes last in the forward pass: NaN gradients spread to earlier layers."""
        names = [name for name, total in self.gradients.items() if not bool(torch.isfinite(total))]
        prefixes = [LAYER.match(site.name) for site in self.sites]
        owners = [
            (number, name)
            for number, prefix in enumerate(prefixes)
            for name in names
            if prefix is not None and f".{prefix[0]}" in f".{name}"
        ]
        if not owners:
            return f"parameter {names[-1]}"
        number, name = max(owners)
        return f"{self._named(number)}, parameter {name}"

    def _named(self, number: int) -> str:
        return f"layer {number} ({self.sites[number].name})"
