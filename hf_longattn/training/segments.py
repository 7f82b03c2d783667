"""Training on documents that are read segment by segment: each row's memory is carried from batch to batch and saved with checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from hf_longattn.data.segments import SegmentBatches
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.modeling.inference import evaluating
from hf_longattn.training.trainer import LongTrainer


class SegmentTrainer(LongTrainer):
    """Trains a Long model on :class:`~hf_longattn.data.segments.Segments`: gradients stay within a batch, the memory carries over.

    An evaluation reads all documents in every process.
    """

    def __init__(self, model: Any, args: Any, *more: Any, **kwargs: Any) -> None:
        if args.gradient_checkpointing or getattr(args, "activation_checkpointing", None):
            raise OptionError("--gradient-checkpointing drops what the layers remember of earlier --segments; leave it out.")
        if getattr(args, "tokens_per_batch", 0):
            raise OptionError("--tokens-per-batch requires rows of known length, not --segments; give --batch-size instead.")
        if args.max_steps < 0:
            args.max_steps = 1000  # the passes never end
        super().__init__(model, args, *more, measure=self.held_out_loss, **kwargs)
        self.memory: Any = None

    def train_batches(self) -> Any:
        args: Any = self.args
        return SegmentBatches(self.train_dataset, args.train_batch_size, args.seed, args.world_size)

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        if self.memory is None:
            self.memory = self.accelerator.unwrap_model(model).new_memory()
        loss, outputs = super().mean_loss(model, {**inputs, "memory": self.memory})
        self.memory = outputs["memory"]
        return loss, outputs

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """As Trainer's; the memory is resumed with the data."""
        self.memory = None
        if resume_from_checkpoint is not None:
            file = self.memory_file(Path(resume_from_checkpoint))
            if not file.is_file():
                raise CheckpointError(
                    f"{str(file.parent)!r} has no {file.name}: it was not written by a training in segments with "
                    f"{self.args.process_index + 1} or more processes; start again, or resume with as many processes as before."
                )
            self.memory = self.accelerator.unwrap_model(self.model).new_memory()
            self.memory.load_state_dict({name: tensor.to(self.args.device) for name, tensor in load_file(file).items()})
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def held_out_loss(self) -> dict[str, float]:
        """The mean loss of all tokens of the held-out documents, and their number."""
        segments: Any = self.eval_dataset
        batches: Any = SegmentBatches(segments, self.args.per_device_eval_batch_size)
        model = self.accelerator.unwrap_model(self.model)
        memory, total, count = model.new_memory(), 0.0, 0
        with evaluating(model), torch.no_grad(), self.compute_loss_context_manager():
            for batch in DataLoader(segments, batch_sampler=batches, collate_fn=self.eval_collator):
                batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                outputs = model(**batch, memory=memory)
                memory = outputs["memory"]
                if items := int(self.items_of(batch)):
                    total, count = total + float(outputs["loss"]) * items, count + items
        return {"loss": total / max(1, count), "n": len(segments)}

    def memory_file(self, checkpoint: Path) -> Path:
        """This process's file in a checkpoint."""
        return checkpoint / f"segment_memory_{self.args.process_index}.safetensors"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's. Every process's memory is saved before trainer_state.json, which completes a checkpoint."""
        super().save_model(output_dir, _internal_call)
        if output_dir is not None and Path(output_dir).name.startswith("checkpoint-") and self.memory is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.memory.state_dict().items()}
            save_file(tensors, self.memory_file(Path(output_dir)))
