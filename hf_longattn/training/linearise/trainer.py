"""The Trainer of both stages: it trains on the model's own loss or against a teacher, logs to a JSONL file with the tokens seen, and stops
at the first NaN."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_longattn.errors import LongAttentionError
from hf_longattn.modeling.attach.attention_sites import attention_sites
from hf_longattn.staging import write_text
from hf_longattn.training.linearise.teacher import Teacher
from hf_longattn.training.trainer import TimedTrainer

LAYER = re.compile(r".*?\.\d+\.")
"""The part of an attention module's name that its whole layer shares."""


class DivergenceError(LongAttentionError):
    """A loss or a gradient became NaN or infinite."""


class LineariseTrainer(TimedTrainer):
    """Checks every loss and gradient before it reaches a parameter, so that every checkpoint is good.

    Args:
        stage: 1 or 2.
        log_path: of the JSONL log; ``None`` = there is none.
        teacher: what the loss compares with; ``None`` = it is the model's own.
        *args, **kwargs: Trainer's.
    """

    def __init__(self, *args: Any, stage: int, log_path: Path | None, teacher: Teacher | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage, self.teacher = stage, teacher
        if teacher is not None:
            self.model_accepts_loss_kwargs = False  # the loss is the mean of a batch
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.layer_names = [site.name for site in attention_sites(_inner(self.model)) if not site.cross]
        if log_path is not None:
            self.add_callback(JSONLog(log_path, stage))
        self.remove_callback(PrinterCallback)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.teacher is not None and model.training:
            loss, parts, outputs = self.teacher.loss(model, inputs, self.accelerator.autocast())
        else:
            arguments = {name: value for name, value in kwargs.items() if name != "return_outputs"}
            loss, outputs = super().compute_loss(model, inputs, True, **arguments)
            layers = outputs.get("layer_losses") if isinstance(outputs, dict) else None
            parts = {} if layers is None else {"layers": layers}
        if not bool(torch.isfinite(loss)):
            self.diverged("the loss", self._layer_of_loss(model, inputs, parts.get("layers")))
        for name, part in parts.items():
            self.sums[name] = self.sums[name] + part if name in self.sums else part.clone()
        self.summed += bool(parts)
        return (loss, outputs) if kwargs.get("return_outputs") else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if getattr(self.accelerator, "scaler", None) is not None:  # of fp16: it leaves out steps whose scaled gradients overflow
            return loss
        gradients = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        sums = torch.stack([gradient.float().sum() for _, gradient in gradients])
        if not bool(torch.isfinite(sums).all()):
            bad = [gradients[number][0].removeprefix("module.") for number in torch.nonzero(~torch.isfinite(sums)).flatten().tolist()]
            self.diverged("the gradient", self._layer_of_parameters(bad))
        return loss

    def diverged(self, what: str, where: str) -> None:
        """Stop the training with a sentence."""
        newest = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
        checkpoint = f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
        rate = "transfer" if self.stage == 1 else "finetune"
        raise DivergenceError(
            f"{what} is not a finite number at step {self.state.global_step + 1} of stage {self.stage}, in {where}; {checkpoint}; "
            f"lower --{rate}-learning-rate{', then resume with --resume' if newest else ''}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        means = {name: (total / self.summed).tolist() for name, total in self.sums.items()}
        rounded = {name: [round(value, 6) for value in mean] if isinstance(mean, list) else round(mean, 6) for name, mean in means.items()}
        logs = {**logs, **rounded}  # type: ignore[dict-item]
        self.sums, self.summed = {}, 0
        super().log(logs, start_time)

    def _layer_of_loss(self, model: nn.Module, inputs: dict[str, Any], layers: Tensor | None) -> str:
        """Which layer made the loss not finite: by the layers' losses, or else by the first attention output that is not finite."""
        if layers is not None:
            bad = torch.nonzero(~torch.isfinite(layers)).flatten().tolist()
            return self._named(bad[0]) if bad else "no single layer"
        inner = _inner(model)
        outputs: dict[str, bool] = {}

        def note(name: str) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                outputs[name] = _finite(output)

            return hook

        hooks = [site.module.register_forward_hook(note(site.name)) for site in attention_sites(inner) if not site.cross]
        try:
            with torch.no_grad():
                inner(**inputs)
        finally:
            for hook in hooks:
                hook.remove()
        bad = [number for number, name in enumerate(self.layer_names) if not outputs.get(name, True)]
        return self._named(bad[0]) if bad else "the parts after the attention layers"

    def _layer_of_parameters(self, names: list[str]) -> str:
        """The layer of the parameter that comes last in the forward pass: NaN gradients spread to those before it."""
        prefixes = [LAYER.match(site) for site in self.layer_names]
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
        return f"layer {number} ({self.layer_names[number]})"


class JSONLog(TrainerCallback):
    """Every log entry as a line of a JSONL file: stage, step, tokens seen, and what Trainer logged. A resumed run continues
    from its checkpoint's entry."""

    def __init__(self, path: Path, stage: int) -> None:
        self.path, self.stage = path, stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero or not self.path.exists():
            return
        complete_lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]  # a full disk may have cut off the last one
        lines = [json.loads(text) for text in complete_lines]
        earlier = [line for line in lines if line["stage"] < self.stage or (line["step"] <= state.global_step and "train_loss" not in line)]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in earlier))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            values = {key: value for key, value in logs.items() if key not in ("epoch", "num_input_tokens_seen")}
            line = {"stage": self.stage, "step": state.global_step, "tokens": state.num_input_tokens_seen, **values}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _inner(model: nn.Module) -> nn.Module:
    """The transformers model inside DistributedDataParallel and stage 1's wrapper."""
    model = getattr(model, "module", model)
    return getattr(model, "model", model) if hasattr(model, "students") else model


def _finite(output: Any) -> bool:
    first = output[0] if isinstance(output, tuple) else output
    return bool(torch.isfinite(first).all())
