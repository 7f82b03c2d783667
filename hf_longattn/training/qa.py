"""Fine-tune a model, short or converted, for extractive question answering over long documents.

Documents longer than the model are read in overlapping windows; in a window without the answer the target is the first token, "no
answer", as in BERT's SQuAD 2 fine-tuning.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.evaluation.qa_features import QAFormat, encode_qa
from hf_longattn.modeling.token_globals import carry_question, takes_globals
from hf_longattn.training.args import QATrainingArguments
from hf_longattn.training.collators import DataCollatorWithGlobals
from hf_longattn.training.data import load_qa
from hf_longattn.training.trainer import TimedTrainer
from hf_longattn.training.training_loop import begin, finish, train


def finetune_qa(args: QATrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, held-out loss before and after, Trainer's history.
    """
    begin(args)
    model, tokenizer = load_qa_model(args.model)
    form = dataclasses.replace(format_for(model, tokenizer, args), stride=args.stride)
    varied = args.random_positions or bool(args.windows)
    parts = [to_features(load_qa(name, args.split), tokenizer, form, document_start=varied) for name in args.data]
    validation = to_features(load_qa(args.validation, args.validation_split), tokenizer, form) if args.validation else None
    if validation is None and args.eval_strategy != "no":
        raise OptionError("evaluation during training needs data; add --validation DATA, or leave --eval_strategy out")
    args.remove_unused_columns = False  # `document_start` goes to the Trainer, the others are the model's
    trainer = QATrainer(
        model,
        args,
        train_dataset=concatenate_datasets(parts),
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=QACollator(tokenizer),
        max_minutes=args.max_minutes,
        positions=PositionRange.of(model) if args.random_positions else None,
        windows=args.windows,
    )
    log: dict[str, Any] = {"input_length": form.max_length, "features": sum(len(part) for part in parts)}
    before = None if validation is None else trainer.evaluate()["eval_loss"]
    train(trainer, args)
    if validation is not None:
        log["held_out_loss"] = {"before": before, "after": trainer.evaluate()["eval_loss"]}
    return finish(trainer, args, log, describe_qa_training)


def to_features(records: Dataset, tokenizer: PreTrainedTokenizerBase, form: QAFormat, *, document_start: bool = False) -> Dataset:
    """Model inputs of SQuAD-shaped records, as many per document as it has windows.

    Returns:
        A dataset with the tokenizer's columns, ``global_attention_mask`` if ``form`` asks for it, ``start_positions``,
        ``end_positions``, ``length`` (tokens), and with ``document_start`` the document's first token.
    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for number in range(len(rows["question"])):
            for feature in encode_qa({name: values[number] for name, values in rows.items()}, tokenizer, form):
                row = {
                    **feature.inputs,
                    "start_positions": feature.start,
                    "end_positions": feature.end,
                    "length": len(feature),
                    **({"document_start": feature.document_start} if document_start else {}),
                }
                for name, value in row.items():
                    columns.setdefault(name, []).append(value)
        return columns

    return records.map(encode, batched=True, batch_size=100, remove_columns=records.column_names)


class QACollator(DataCollatorWithGlobals):
    """Pads question-answering inputs; the length by which they were grouped is left out."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        return super().__call__([{name: value for name, value in row.items() if name != "length"} for row in features])


class QATrainer(TimedTrainer):
    """A Trainer that can vary positions and windows in every step.

    Args:
        positions: put question and document at random rows of this range, so that the whole position table is trained and nothing
            depends on absolute positions; ``None`` = the model's own positions.
        windows: see :func:`window_mask`; for short models only. Empty = full attention.

    Training batches then need ``document_start (B,)``.
    """

    def __init__(self, *args: Any, positions: PositionRange | None = None, windows: Sequence[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.positions, self.windows = positions, tuple(windows)
        self.batches = (0, 0)  # the current step, and its batches so far

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's. Positions and windows are drawn with the step's own seed, so that a resumed run draws what the uninterrupted run
        would have drawn; a collator has collated batches ahead by then."""
        step = self.state.global_step
        self.batches = (step, self.batches[1] + 1 if self.batches[0] == step else 1)
        first = inputs.pop("document_start", None)
        if first is not None:
            seed = random.Random(f"{self.args.seed}:{self.args.process_index}:{self.batches}").getrandbits(63)
            inputs = {**inputs, **self.varied(first.cpu(), inputs["attention_mask"], torch.Generator().manual_seed(seed))}
        return super().training_step(model, inputs, *args, **kwargs)

    def varied(self, first: Tensor, real: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """``position_ids`` and ``attention_mask`` where they are to vary; ``first (B,)`` is where documents start."""
        found: dict[str, Tensor] = {}
        if self.positions is not None:
            found["position_ids"] = random_positions(first, real.shape[1], self.positions, generator).to(real.device)
        mask = window_mask(first, real.cpu(), self.windows, generator) if self.windows else None
        if mask is not None:
            found["attention_mask"] = mask.to(real.device)
        return found


@dataclass(frozen=True)
class PositionRange:
    """The rows of a learned position table that tokens may use: ``first`` … ``first + count - 1``."""

    first: int
    count: int

    @staticmethod
    def of(model: PreTrainedModel) -> PositionRange | None:
        """The range of a model with a learned table of absolute positions; ``None`` for any other."""
        embeddings = getattr(model.base_model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        if not isinstance(table, torch.nn.Embedding):
            return None
        first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts from padding_idx + 1
        return PositionRange(first, table.num_embeddings - first)


def random_positions(first: Tensor, length: int, positions: PositionRange, generator: torch.Generator) -> Tensor:
    """Position ids ``(B, length)`` with question and document placed independently; a document wraps around the end of the table.

    That is what a tiled table looks like: any row at any place, with a seam at every copy.
    """
    places = torch.arange(length)
    starts = torch.randint(0, positions.count, (len(first), 2), generator=generator)
    start = torch.where(places < first[:, None], starts[:, :1], starts[:, 1:])
    return positions.first + (start + places) % positions.count


def window_mask(first: Tensor, real: Tensor, windows: Sequence[int], generator: torch.Generator) -> Tensor | None:
    """Draw one w of ``windows``: document tokens see the question and w tokens on either side, as after a conversion.

    Returns:
        Which tokens see which ``(B, 1, L, L)``; ``None`` if 0, full attention, was drawn.
    """
    half = windows[int(torch.randint(0, len(windows), (1,), generator=generator))]
    if not half:
        return None
    places = torch.arange(real.shape[1])
    near = (places[:, None] - places).abs() <= half
    question = places < first[:, None]
    seen = near | question[:, None, :] | question[:, :, None]
    return (seen & real[:, None, :].bool())[:, None]


def describe_qa_training(log: dict[str, Any], command: str = "longattn train qa") -> str:
    """What a model card says about a run: its length, the arguments that were given, and the held-out loss."""
    settings, last = log["settings"], {key: value for entry in log["history"] for key, value in entry.items()}
    changed = {k: v for k, v in settings.items() if k not in ("model", "output_dir", "data", "threads", "disable_tqdm", "resume")}
    minutes = last.get("train_runtime", 0.0) / 60
    lines = [f"{last.get('step', 0):,} steps in {minutes:.1f} minutes with `{command}`, on {', '.join(settings['data'])}:", ""]
    lines += [f"- `{key}`: {value}" for key, value in changed.items()]
    if "held_out_loss" in log:
        loss = log["held_out_loss"]
        lines += ["", f"Loss on `{settings['validation']}`: {loss['before']:.3f} before, {loss['after']:.3f} after."]
    return "\n".join(lines)


def load_qa_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model with a question-answering head (new if the checkpoint has none) in float32, and its fast tokenizer, which pads on the
    right, where answers keep their positions."""
    try:
        model = AutoModelForQuestionAnswering.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if not tokenizer.is_fast:
        raise CheckpointError(f"the tokenizer of {name!r} gives no character offsets; question answering needs a fast tokenizer")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def format_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: QATrainingArguments) -> QAFormat:
    """Return how documents become inputs of this model; its config then says which tokens are global, so that inference matches training.

    Raises:
        OptionError: a global question is requested for a model without global tokens.
    """
    longest = longest_input(model, tokenizer)
    length, question = min(args.max_length or longest, longest), args.max_question_tokens
    if args.global_question is False:
        if getattr(model.config, "question_separator_id", None) is not None:
            model.config.question_separator_id = None
        return QAFormat(length, max_question_tokens=question)
    chosen_by_model = carry_question(model, tokenizer)
    if args.global_question and not takes_globals(model):
        raise OptionError(f"global_question was requested, but no layer of {args.model!r} takes global tokens; leave it out")
    return QAFormat(length, None, bool(args.global_question) and not chosen_by_model, question)


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model takes."""
    positions = PositionRange.of(model)
    return positions.count if positions else int(getattr(model.config, "max_position_embeddings", tokenizer.model_max_length))
