"""Continued training of language models on long text: the tasks mlm and clm.

With ``--segments``, the model reads each document segment by segment and remembers earlier segments. The tasks distill
and linearise use the arguments in this file too, and distill uses :func:`load_lm`.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.batching import (
    DataCollatorForPackedText,
    EpochSampler,
    RepeatableMasks,
    chosen_packing,
    shuffled,
)
from ..data.rows import each_part, read_texts
from ..data.tokenization import input_length, to_documents, to_inputs
from ..errors import CheckpointError, OptionError
from ..loading import fetch_model, load_config, load_model, load_padding_tokenizer, read_config
from ..modeling.family.definition import CAUSAL_LANGUAGE_MODELS
from ..modeling.family.registration import auto_mapping, mapped_names
from ..modeling.generic import check_class
from ..modeling.inference import evaluating
from ..modeling.losses import deferred_logits
from .arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from .run import begin, finish
from .trainer import LongTrainer

HEADS: dict[str, Any] = {"mlm": AutoModelForMaskedLM, "clm": AutoModelForCausalLM, "hidden": AutoModel}
"""Objective of a training -> the class that loads a model with the head for this objective."""


@dataclass
class TextDataArguments(DataArguments):
    """Plain text. A .txt file, and every file of a folder, is one document."""

    roles = {"text": ("text",)}

    template: list[str] = argument(
        [],
        "Format strings that make the text from several columns, '{title}: {body}'; each row takes the first one "
        "whose columns all have a value.",
    )


@dataclass
class LMDataArguments(TextDataArguments):
    """Text for continued language-model training."""

    mlm_probability: float = argument(0.15, "Fraction of the tokens that are predicted by mlm.")
    segments: int = argument(
        0,
        "Read each document in consecutive segments of this many tokens, with the model's memory of earlier ones, "
        "for --max-steps (1,000 by default); 0 = independent inputs. For mechanisms with a memory: transformer_xl, "
        "recurrent_memory, linear, window.",
    )
    packing: bool | None = argument(
        None,
        "Keep the documents that share an input apart, so that none sees another and positions restart; "
        "default: yes where the model can (Long models). Otherwise they follow each other, as in run_mlm and run_clm.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise OptionError(f"--mlm-probability must lie between 0 and 1, not {self.mlm_probability}.")
        if self.segments and (self.segments < 2 or self.max_length is not None):
            raise OptionError(f"--segments is {self.segments}; give at least 2, and no --max-length.")


@dataclass
class TextTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the batch sizes of long text."""

    per_device_train_batch_size: int = batch_size_argument(1)
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step.")


ARGUMENTS = (ModelArguments, LMDataArguments, TextTrainingArguments)


def train_lm(
    objective: str, model_args: ModelArguments, data_args: LMDataArguments, training_args: TextTrainingArguments
) -> dict[str, Any]:
    """Train a language model, write it to ``training_args.output_dir``, and return the log.

    Args:
        objective: "mlm" (predict masked tokens) or "clm" (predict the next token).
    """
    begin(model_args, data_args, training_args)
    model, tokenizer, _ = load_lm(model_args.model, objective, complete=not training_args.do_train)
    parts = read_texts(data_args, training_args.seed)
    pack = chosen_packing(model, data_args.packing, training_args) and not data_args.segments
    collator_class = DataCollatorForPackedText if pack else RepeatableMasks
    collator: Any = collator_class(
        tokenizer, mlm=objective == "mlm", mlm_probability=data_args.mlm_probability, seed=training_args.seed
    )
    length = data_args.segments or input_length(model, tokenizer, data_args.max_length)
    if data_args.segments:
        trainer_class: Any = SegmentTrainer
        documents = each_part(partial(to_documents, tokenizer=tokenizer), *parts)
        train, scored = (Segments(part, length, tokenizer.pad_token_id) for part in documents)
    else:
        trainer_class = LongTrainer
        train, scored = each_part(partial(to_inputs, tokenizer=tokenizer, length=length, pack=pack), *parts)
    trainer = trainer_class(model, training_args, collator, train, scored, tokenizer)
    return finish(trainer, model_args, data_args, input_length=length, packed=pack)


def load_lm(
    name: str, objective: str, *, complete: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load a model for an objective in float32. Returns the model, its tokenizer, and the objective.

    Args:
        objective: "mlm" (predict masked tokens), "clm" (predict the next token), "auto" (mlm or clm, by the model's
            head), or "hidden" (no head).
        complete: refuse a checkpoint that lacks weights.

    Raises:
        CheckpointError: the checkpoint cannot be loaded or trained.
        OptionError: the model has no head for the objective.
    """
    config = load_config(name)
    tokenizer: PreTrainedTokenizerBase = load_padding_tokenizer(name, config)
    has_head = {key: config.model_type in mapped_names(auto_mapping(loader)) for key, loader in HEADS.items()}
    by_class = objective in ("auto", "hidden")
    if objective == "auto":
        if not has_head["mlm"] and not has_head["clm"]:
            raise CheckpointError(
                f"{name!r} ({config.model_type}) has no language-modelling head; take a model that predicts tokens."
            )
        is_masked = has_head["mlm"] and not (config.architectures or [""])[0].endswith(CAUSAL_LANGUAGE_MODELS)
        objective = "mlm" if is_masked and tokenizer.mask_token is not None else "clm"
    # An encoder such as BERT can be loaded for clm, but its tokens see the next token.
    is_encoder = has_head["mlm"] and not config.is_encoder_decoder and not getattr(config, "is_decoder", False)
    if not has_head[objective] or (objective == "clm" and is_encoder):
        abilities = {
            "mlm": "predict masked tokens",
            "clm": "predict the next token from those before it",
            "hidden": "have hidden states",
        }
        other = "clm" if objective == "mlm" else "mlm"
        raise OptionError(
            f"{name!r} ({config.model_type}) does not {abilities[objective]}, which {objective} needs; take the task "
            f"{other}."
        )
    model: PreTrainedModel = load_model(HEADS[objective], name, complete=complete)
    if by_class:
        folder = fetch_model(name)
        check_class(name, folder, read_config(folder))
    if getattr(model, "is_quantized", False):
        raise CheckpointError(
            f"{name!r} holds quantised weights, which cannot be trained; train the checkpoint that it was made from."
        )
    if objective == "mlm" and tokenizer.mask_token is None:
        raise CheckpointError(
            f"The tokenizer of {name!r} has no mask token, which mlm needs; give it one "
            "(tokenizer.add_special_tokens)."
        )
    return model, tokenizer, objective


MEMORY_FILE = "segment_memory_{}.safetensors"
"""Name of the file in a checkpoint that holds the memory of one process. {} is the number of the process."""
Position = tuple[int, int, int]
"""Where a segment is: number of the epoch, number of the document, and index of the first token in the document."""


class Segments(torch.utils.data.Dataset[dict[str, Any]]):
    """Documents, cut into segments of ``length`` tokens. The last segment of a document is padded on the right.

    ``segments[position]`` are the model inputs of the segment at a :data:`Position`, and ``segments[None]`` only
    padding. ``len(segments)`` is the number of documents.

    Args:
        documents: a dataset from :func:`~hf_longattn.data.tokenization.to_documents`.
    """

    def __init__(self, documents: Dataset, length: int, pad_token_id: int = 0) -> None:
        self.documents, self.length, self.pad_token_id = documents.with_format("numpy"), length, pad_token_id
        self.sizes = [len(row["input_ids"]) for row in documents]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, position: Position | None) -> dict[str, Any]:
        """The segment at a position: ``input_ids`` and ``attention_mask``, both ``(length,)``, and two numbers.

        ``memory_reset`` is 1 in the first segment of a document, and ``epoch`` is the epoch of the position.
        """
        epoch = first = 0
        ids: Any = []
        if position is not None:
            epoch, document, first = position
            ids = self.documents[document]["input_ids"][first : first + self.length]
        tokens = pad(torch.tensor(ids, dtype=torch.long), (0, self.length - len(ids)), value=self.pad_token_id)
        mask = (torch.arange(self.length) < len(ids)).long()
        return {"input_ids": tokens, "attention_mask": mask, "memory_reset": int(first == 0), "epoch": epoch}


class SegmentBatches(EpochSampler):
    """Batches of ``rows`` segments, as lists of :data:`Position`.

    A row of a batch continues its document in the next batch. With several processes, process p of n gets every n-th
    batch, starting from batch p.

    With ``seed``, the batches never end, and each epoch has another order of documents. Without ``seed``, there is one
    epoch in the original order. When no documents are left, rows that have ended are ``None``.
    """

    def __init__(self, segments: Segments, rows: int, seed: int | None = None, processes: int = 1) -> None:
        self.sizes, self.length = segments.sizes, segments.length
        self.rows, self.seed, self.processes = rows, seed, processes

    def __iter__(self) -> Iterator[list[Position | None]]:
        """The batches of all processes, in turn."""
        count = len(self.sizes)
        orders: Iterable[Iterable[int]] = [range(count)]
        if self.seed is not None:
            orders = (shuffled(count, f"{self.seed}:{epoch}") for epoch in itertools.count())
        documents = (
            [(epoch, document, first) for first in range(0, self.sizes[document], self.length)]
            for epoch, order in enumerate(orders)
            for document in order
        )
        # All rows of all processes draw from this one generator: a row whose document ends takes the next document.
        rows = [itertools.chain.from_iterable(documents) for _ in range(self.rows * self.processes)]
        for positions in itertools.zip_longest(*rows):
            for start in range(0, len(positions), self.rows):
                yield list(positions[start : start + self.rows])


class SegmentTrainer(LongTrainer):
    """Trains a Long model on :class:`~hf_longattn.training.lm.Segments`.

    The model's memory is passed from each batch to the next batch, without gradients. In an evaluation, every process
    reads all documents.
    """

    def __init__(self, model: Any, args: Any, *more: Any, **kwargs: Any) -> None:
        if args.gradient_checkpointing or getattr(args, "activation_checkpointing", None):
            raise OptionError(
                "--gradient-checkpointing drops what the layers remember of earlier --segments; leave it out."
            )
        if getattr(args, "tokens_per_batch", 0):
            raise OptionError(
                "--tokens-per-batch requires rows of known length, not --segments; give --batch-size instead."
            )
        if args.max_steps < 0:
            args.max_steps = 1000  # the batches of SegmentBatches never end
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
        """Train as in Trainer. A resumed run also restores the memory.

        Raises:
            CheckpointError: the checkpoint has no memory for this process.
        """
        self.memory = None
        if resume_from_checkpoint is not None:
            file = Path(resume_from_checkpoint, MEMORY_FILE.format(self.args.process_index))
            if not file.is_file():
                raise CheckpointError(
                    f"{str(file.parent)!r} has no {file.name}: it was not written by a training in segments with "
                    f"{self.args.process_index + 1} or more processes; start again, or resume with as many processes "
                    "as before."
                )
            self.memory = self.accelerator.unwrap_model(self.model).new_memory()
            self.memory.load_state_dict(
                {name: tensor.to(self.args.device) for name, tensor in load_file(file).items()}
            )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def held_out_loss(self) -> dict[str, float]:
        """``loss``, the mean over all labels of the held-out documents, and ``n``, the number of documents."""
        segments: Any = self.eval_dataset
        batches: Any = SegmentBatches(segments, self.args.per_device_eval_batch_size)
        model = self.accelerator.unwrap_model(self.model)
        memory = model.new_memory()
        total, count = 0.0, 0
        with evaluating(model), torch.no_grad(), self.compute_loss_context_manager(), deferred_logits(self.inner):
            for batch in DataLoader(segments, batch_sampler=batches, collate_fn=self.eval_collator):
                batch = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                outputs = model(**batch, memory=memory)
                memory = outputs["memory"]
                items = int(self.items_of(batch))
                if items:  # the loss of a batch without labels is NaN
                    total += float(outputs["loss"]) * items
                    count += items
        return {"loss": total / max(1, count), "n": len(segments)}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as in Trainer. In a checkpoint, every process also saves its memory.

        Trainer calls this before it writes trainer_state.json, so a complete checkpoint has all memories.
        """
        super().save_model(output_dir, _internal_call)
        if output_dir is not None and Path(output_dir).name.startswith("checkpoint-") and self.memory is not None:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            tensors = {
                name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.memory.state_dict().items()
            }
            save_file(tensors, Path(output_dir, MEMORY_FILE.format(self.args.process_index)))
