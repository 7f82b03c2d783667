"""Fine-tuning for extractive question answering, on transformers' Trainer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_longattn.training.timed_trainer import TimedTrainer
from research.qa_collator import PositionRange, QACollator
from research.qa_packing import packed_loss, share_found
from research.qa_stream import Curriculum


class QATrainer(TimedTrainer):
    """A Trainer that takes :class:`QAFeature` data sets, counts exact answers, and can be given a time instead of steps.

    Args:
        model: a question-answering model; its class defines ``start_logits`` and ``end_logits``.
        args: transformers' TrainingArguments; ``remove_unused_columns`` must be False.
        train_dataset: a map-style data set of features, or of groups of them.
        pad_token_id: the tokenizer's.
        max_minutes: stop, with the learning rate at its end, after so many minutes (a resumed run counts those before);
            ``args.max_steps`` bounds it as well.
        random_positions: start every training row at a random place of the position table.
        windows: see :class:`QACollator`; for short models only.
        curriculum: told the recent lookup accuracy every ``args.logging_steps``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        train_dataset: Any,
        *,
        pad_token_id: int,
        max_minutes: float | None = None,
        random_positions: bool = False,
        windows: Sequence[int] = (),
        curriculum: Curriculum | None = None,
        **kwargs: Any,
    ) -> None:
        self.varying = QACollator(pad_token_id, PositionRange.of(model) if random_positions else None, windows)
        self.batches = (0, 0)  # the current step, and its batches so far
        collator = QACollator(pad_token_id)
        super().__init__(model=model, args=args, train_dataset=train_dataset, data_collator=collator, max_minutes=max_minutes, **kwargs)
        self.exact: dict[str, list[Tensor]] = defaultdict(list)
        self.curriculum = curriculum
        if curriculum is not None:
            self.add_callback(_CurriculumState(curriculum))

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's. Positions and windows are drawn here by the step's own seed, so that a resumed run draws what it would have drawn
        without the interruption; a collator has collated batches ahead by then."""
        step = self.state.global_step
        self.batches = (step, self.batches[1] + 1 if self.batches[0] == step else 1)
        seed = random.Random(f"{self.args.seed}:{self.args.process_index}:{self.batches}").getrandbits(63)
        return super().training_step(model, self.varying.vary(inputs, torch.Generator().manual_seed(seed)), *args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the model's loss; remember per task how many answers started at the right token."""
        task = inputs.pop("task")
        inputs.pop("document_start")
        given = inputs
        starts = inputs.get("starts", inputs["start_positions"][:, None])
        if not hasattr(self.accelerator.unwrap_model(model), "trail_pointers"):
            inputs = {key: value for key, value in given.items() if key not in ("ask", "trail", "links", "starts", "ends")}
        outputs = model(**inputs)
        if "ends" in given and "ends" not in inputs and starts.shape[1] > 1:
            outputs.loss = packed_loss(outputs.start_logits, outputs.end_logits, starts, given["ends"])
        self.exact[task].append(share_found(outputs.start_logits.detach(), starts))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tasks' recent exact match and the curriculum's stage; move the curriculum."""
        for task, share in self._recent().items():
            logs[f"exact_{task}"] = round(share, 4)
            if self.curriculum is not None and task == "lookup":
                self.curriculum.report(share)
        if self.curriculum is not None:
            logs["stage"] = self.curriculum.stage
        pointers = getattr(self.accelerator.unwrap_model(self.model), "trail_pointers", None)
        if pointers is not None:
            logs.update({f"pointer_{step}": round(loss, 3) for step, loss in enumerate(pointers.recent, 1)})
        super().log(logs, start_time)

    def _recent(self) -> dict[str, float]:
        """Return the exact match by task since the last call, over all processes."""
        tasks = sorted({"lookup", "qa"})
        sums = torch.zeros(len(tasks), 2, device=self.args.device)
        for place, task in enumerate(tasks):
            if self.exact[task]:
                rows = torch.cat(self.exact.pop(task))
                sums[place] = torch.stack([rows.sum(), torch.tensor(float(len(rows)), device=rows.device)])
        sums = self.accelerator.reduce(sums, reduction="sum")
        return {task: float(right / count) for task, (right, count) in zip(tasks, sums, strict=True) if count}


class _CurriculumState(TrainerCallback):
    """Keeps the stage in the trainer's state, so that a resumed run goes on where it was."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        stages = [entry["stage"] for entry in state.log_history if "stage" in entry]
        self.curriculum.stage = max([self.curriculum.stage, *stages])
