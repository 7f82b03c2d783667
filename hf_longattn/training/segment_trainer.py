"""A Trainer for documents read segment by segment: it carries each row's memory from batch to batch, and saves it with a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_longattn.errors import CheckpointError
from hf_longattn.training.segments import IGNORED, SegmentCollator, SegmentStream
from hf_longattn.training.timed_trainer import TimedTrainer


class SegmentTrainer(TimedTrainer):
    """Trains a Long model on a :class:`SegmentStream`; gradients stay within a batch, what is remembered goes on.

    The stream must have as many rows as all processes' batches have together. ``evaluate`` reads all of its own stream, in every process.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory: Any = None
        self.control: Any
        self.add_callback(_SaveMemory(self))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:  # Trainer's own signature
        if self.memory is None:
            self.memory = self.accelerator.unwrap_model(model).new_memory()
        inputs = {**inputs, "memory": self.memory}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        self.memory = outputs["memory"]
        if not bool((self._predicted(inputs["labels"]) != IGNORED).any()):  # the rows of this process have no document left
            loss = outputs["logits"].sum() * 0.0
        return (loss, outputs) if return_outputs else loss

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's; a checkpoint's memory goes on where its data do."""
        self.memory = None
        if isinstance(resume_from_checkpoint, str | Path):
            self._load_memory(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The mean loss of all tokens of a stream."""
        stream = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(stream, SegmentStream)
        model = self.accelerator.unwrap_model(self.model)
        was_training, memory, total, count = model.training, model.new_memory(), 0.0, 0
        model.eval()
        collate = self.data_collator if isinstance(self.data_collator, SegmentCollator) else SegmentCollator()
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in DataLoader(stream, batch_size=stream.rows, collate_fn=collate):
                batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                outputs = model(**batch, memory=memory)
                memory = outputs["memory"]
                items = int((self._predicted(batch["labels"]) != IGNORED).sum())
                if items:
                    total, count = total + float(outputs["loss"]) * items, count + items
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_loss": total / max(1, count)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _predicted(self, labels: Tensor) -> Tensor:
        """The labels that the loss is the mean of: where none is masked, the first token is not predicted."""
        masks = isinstance(self.data_collator, SegmentCollator) and self.data_collator.mask_tokens is not None
        return labels if masks else labels[..., 1:]

    def memory_file(self, checkpoint: Path) -> Path:
        """Where this process keeps its rows' memory in a checkpoint."""
        return checkpoint / f"segment_memory_{self.args.process_index}.safetensors"

    def save_memory(self, checkpoint: Path) -> None:
        """Write this process's memory beside the optimiser's state."""
        if self.memory is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.memory.state_dict().items()}
            save_file(tensors, self.memory_file(checkpoint))

    def _load_memory(self, checkpoint: Path) -> None:
        file = self.memory_file(checkpoint)
        if not file.is_file():
            raise CheckpointError(
                f"{str(checkpoint)!r} has no {file.name}: it was not written while training segment by segment with "
                f"{self.args.process_index + 1} processes or more; start anew, or resume with as many processes as before."
            )
        self.memory = self.accelerator.unwrap_model(self.model).new_memory()
        self.memory.load_state_dict({name: tensor.to(self.args.device) for name, tensor in load_file(file).items()})


class _SaveMemory(TrainerCallback):
    """Called in every process, after a checkpoint was written."""

    def __init__(self, trainer: SegmentTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.save_memory(Path(args.output_dir) / f"checkpoint-{state.global_step}")
