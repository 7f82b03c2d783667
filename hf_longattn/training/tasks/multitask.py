"""Train one backbone with several named heads, on texts, images and sound.

Each batch is from one task, drawn with a probability by data size. The result is one checkpoint;
:func:`load_multitask_head` loads a head with its backbone.
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import copy
import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import ConcatDataset
from transformers import AutoModel, PreTrainedModel
from transformers.utils import PROCESSOR_NAME

from hf_longattn.data.batching import EpochAwareCollator, EpochSampler
from hf_longattn.data.sources import DataError
from hf_longattn.errors import CheckpointError, OptionError, check_extra, listed, nearest
from hf_longattn.loading import label_fields, load_config, load_model, load_padding_tokenizer, load_part
from hf_longattn.modeling.family.registration import auto_mapping
from hf_longattn.modeling.losses import label_count
from hf_longattn.modeling.multimodal import (
    AudioInput,
    ImageInput,
    LongMultimodalConfig,
    LongMultimodalModel,
    without_pooler,
)
from hf_longattn.names import logger
from hf_longattn.training.arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from hf_longattn.training.run import begin, finish
from hf_longattn.training.tasks import classify, qa, tokens
from hf_longattn.training.tasks.classify import label_names
from hf_longattn.training.tasks.tokens import tag_names
from hf_longattn.training.trainer import LongTrainer, batch_rows, highest


@dataclass
class MultiTaskDataArguments(DataArguments):
    """The data of several tasks.

    Attributes:
        parts: the task's name -> its kind, and its data arguments as in the command for this task alone.
    """

    data: list[str] = field(default_factory=list, init=False)
    tasks: list[str] = argument(
        [],
        "The tasks, NAME=KIND:DATA; KIND is classify, tokens, qa, images or audio, DATA as for that task (images and "
        "audio: as for classify), for example topic=classify:reviews.csv ask=qa:squad.json.",
    )
    columns: list[str] = argument(
        [], "Names of columns, NAME.ROLE=COLUMN, where they are not the usual ones: topic.label=stars."
    )
    validation: list[str] = argument(  # type: ignore[assignment]
        [], "NAME=DATA for each task that is evaluated on other data; default: a tenth of the task's own data."
    )
    image_size: int | None = argument(
        None,
        "Sides of the images in pixels, for a model of texts that is to read images in patches of 16 x 16; default: "
        "224.",
    )

    def __post_init__(self) -> None:
        self.parts: dict[str, tuple[str, Any]] = {}
        self.only_scores, self.scored_rows = False, {}
        validation = dict(text.partition("=")[::2] for text in self.validation)
        columns = [text.partition(".")[::2] for text in self.columns]
        for text in self.tasks:
            name, _, rest = text.partition("=")
            kind, _, data = rest.partition(":")
            if not name.isidentifier() or kind not in KINDS or not data or name in self.parts:
                raise OptionError(
                    f"A task is NAME=KIND:DATA, with a name that no other task has and a kind of {', '.join(KINDS)}, "
                    f"not {text!r}.{nearest(kind, KINDS)}"
                )
            shared = {
                key: getattr(self, key) for key in ("split", "max_length", "max_train_samples", "max_eval_samples")
            }
            named = [column for task, column in columns if task == name]
            self.parts[name] = (
                kind,
                KINDS[kind][1](data=[data], columns=named, validation=validation.pop(name, ""), **shared),
            )
        if not self.parts:
            raise OptionError("No tasks given; add --tasks NAME=KIND:DATA NAME=KIND:DATA.")
        if unknown := [*validation, *(task for task, _ in columns if task not in self.parts)]:
            raise OptionError(
                "--columns takes NAME.ROLE=COLUMN, and --validation takes NAME=DATA, with a NAME of "
                f"{', '.join(self.parts)}, not {unknown[0]!r}.{nearest(unknown[0], self.parts)}"
            )


@dataclass
class MultiTaskTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` for several tasks at once. By default, the best model has the highest mean of the tasks'
    main scores (``metric_for_best_model mean``)."""

    per_device_train_batch_size: int = batch_size_argument(2)
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step; they mix the tasks.")
    learning_rate: float = argument(5e-5, "Peak learning rate (MT-DNN, Liu et al. 2019: 5e-5).")

    def __post_init__(self) -> None:
        if self.tokens_per_batch:
            raise OptionError(
                "--tokens-per-batch does not apply to batches of one task each; give --batch-size instead."
            )
        if self.load_best_model_at_end and not getattr(self, "metric_for_best_model", None):
            self.metric_for_best_model = "mean"
        super().__post_init__()
        self.label_names, self.ddp_find_unused_parameters = ["labels"], True


ARGUMENTS = (ModelArguments, MultiTaskDataArguments, MultiTaskTrainingArguments)


def main(
    model_args: ModelArguments, data_args: MultiTaskDataArguments, training_args: MultiTaskTrainingArguments
) -> dict[str, Any]:
    kinds = {name: kind for name, (kind, _) in data_args.parts.items()}
    if "tokens" in kinds.values():
        check_extra("metrics", "seqeval")
    begin(model_args, data_args, training_args)
    backbone = Backbone(model_args.model, kinds.values(), data_args.image_size, complete=not training_args.do_train)
    tasks = {}
    for name, (kind, args) in data_args.parts.items():
        args.only_scores = data_args.only_scores
        _, _, read, labels_of, make_inputs = KINDS[kind]
        parts = read(args, seed=training_args.seed)
        model, names = backbone.head(name, kind, labels_of(*parts))
        processor = {"images": backbone.image_processor, "audio": backbone.feature_extractor}.get(
            kind, backbone.tokenizer
        )
        inputs = make_inputs(model, parts, names, args, training_args, processor)
        if kind == "audio":
            lengths = inputs["train_dataset"]["length"][:]
            longest = inputs["data_collator"]([inputs["train_dataset"][lengths.index(max(lengths))]])
            # refuses a sound that is too long
            model.multimodal.embedded(None, longest["input_features"], longest.get("attention_mask"))
        tasks[name] = PreparedTask(name, kind, model, {"compute_metrics": classify.class_scores, **inputs})
        for key, count in args.scored_rows.items():
            data_args.scored_rows[key] = data_args.scored_rows.get(key, 0) + count
    rows: Any = ConcatDataset([task.rows for task in tasks.values()])
    held_out = {name: task.held_out for name, task in tasks.items()}
    collator = MixedCollator({name: task.collator for name, task in tasks.items()})
    processor = backbone.tokenizer if backbone.model is None else backbone
    trainer = MultiTaskTrainer(MultiTaskModel(tasks), training_args, collator, rows, held_out, processor)
    trainer.tasks = tasks
    return finish(trainer, model_args, data_args, heads=kinds)


KINDS: dict[str, Any] = {
    kind: (
        loader,
        classify.ClassificationDataArguments,
        partial(classify.read_labelled, inputs=roles),
        label_names,
        make_inputs,
    )
    for kind, (loader, roles, make_inputs) in zip(("classify", "images", "audio"), classify.MODALITIES, strict=True)
}
KINDS["tokens"] = (
    transformers.AutoModelForTokenClassification,
    tokens.TokenDataArguments,
    tokens.read_tagged,
    tag_names,
    tokens.tag_inputs,
)
KINDS["qa"] = (
    transformers.AutoModelForQuestionAnswering,
    qa.QADataArguments,
    qa.read_questions,
    lambda *parts: (),
    qa.question_inputs,
)
"""Kind of task -> the class that loads its model, data arguments of its command, and functions that read rows, find
labels, and prepare Trainer's arguments."""


HEAD_FIELDS = ("question_separator_id", "no_answer_threshold")
"""Fields of a head's config that are saved with it, besides its labels."""
IMAGE_SIZE, PATCH, MEL_BINS = 224, 16, 80
"""Sizes for new embedders: side of an image and of a patch in pixels, as in ViT, and mel bins of a spectrogram."""


def load_multitask_head(name: str, head: str) -> PreTrainedModel:
    """One head of a ``longattn train multitask`` checkpoint with its backbone, as an ordinary model.

    Args:
        name: a folder or a Hub name.
        head: the task's name.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or lacks weights of the head.
        OptionError: the checkpoint has no such head.
    """
    heads = getattr(load_config(name), "multitask_heads", {})
    if head not in heads:
        raise OptionError(f"{name!r} has the heads {', '.join(heads) or 'none'}, not {head!r}.{nearest(head, heads)}")
    entry = heads[head]
    model: PreTrainedModel = load_model(
        KINDS[entry["kind"]][0],
        name,
        complete=True,
        key_mapping={rf"^heads\.{head}\.": ""},
        **label_fields(entry["labels"]),
    )
    for key in HEAD_FIELDS:
        if key in entry:
            setattr(model.config, key, entry[key])
    return model


class Backbone:
    """The shared base model. A text model gets new embedders for images and sound if tasks need them.

    tokenizer, image_processor, feature_extractor: processors of inputs; ``None`` = the model does not read such
        inputs.
    model: a model with several modalities; ``None`` = all heads have the checkpoint's own architecture.
    heads: heads in the checkpoint, see :meth:`MultiTaskModel.saved_config`.

    Args:
        name, kinds: a checkpoint (text or several modalities), and the kinds of the tasks.
        image_size: side of images for a new embedder; default: :data:`IMAGE_SIZE`.
        complete: whether the checkpoint must have the heads, because nothing is trained.
    """

    def __init__(
        self, name: str, kinds: Collection[str], image_size: int | None = None, *, complete: bool = False
    ) -> None:
        config: Any = load_config(name)
        self.name, self.complete, self.heads = name, complete, getattr(config, "multitask_heads", {})
        if complete and not self.heads:
            raise CheckpointError(
                f"{name!r} has no heads of longattn train multitask; type longattn evaluate TASK for one with a head."
            )
        self.tokenizer = load_padding_tokenizer(name, config)
        # Keeps tokens and windows in the order of the words.
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"
        several = isinstance(config, LongMultimodalConfig)
        embedded = config.embedded if several else {}
        new = dict[str, Any]()
        self.image_processor = load_part(transformers.AutoImageProcessor, name) if "images" in embedded else None
        self.feature_extractor = load_part(transformers.AutoFeatureExtractor, name) if "sound" in embedded else None
        if image_size and ("images" not in kinds or "images" in embedded):
            raise OptionError(
                "--image-size is for a task of kind images, on a model that does not read images yet; leave it out."
            )
        if "images" in kinds and "images" not in embedded and not complete:
            side = image_size or IMAGE_SIZE
            new["images"] = ImageInput((side, side), PATCH)
            self.image_processor = transformers.ViTImageProcessor(size={"height": side, "width": side})
        if "audio" in kinds and "sound" not in embedded and not complete:
            new["sound"] = AudioInput(MEL_BINS)
            # The embedder normalises each frame. Normalising over the whole recording would remove a steady sound.
            self.feature_extractor = transformers.Speech2TextFeatureExtractor(
                feature_size=MEL_BINS, num_mel_bins=MEL_BINS, do_ceptral_normalize=False
            )
        self.model: Any = None
        if several:
            self.model = load_model(LongMultimodalModel, name, complete=complete).with_embedders(**new)
        elif new:
            self.heads = {}
            self.model = LongMultimodalModel.of(load_model(AutoModel, name, **without_pooler(config)), **new)

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        self.tokenizer.save_pretrained(folder, **settings)
        parts = {"image_processor": self.image_processor, "feature_extractor": self.feature_extractor}
        values = {name: json.loads(part.to_json_string()) for name, part in parts.items() if part is not None}
        Path(folder, PROCESSOR_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def head(self, task: str, kind: str, labels: Sequence[str] = ()) -> tuple[Any, list[str]]:
        """The model with the head of a task, and its classes. Uses the checkpoint's head of this name and kind if it
        has all labels.

        Refuses to create a head if nothing is trained. ``labels``: labels of the data; none for spans.
        """
        saved = self.heads.get(task, {})
        trained = saved.get("kind") == kind and set(labels) <= set(saved["labels"])
        if not trained and self.heads:
            heads = [f"{name} ({entry['kind']}: {listed(entry['labels'])})" for name, entry in self.heads.items()]
            why = (
                f"{self.name!r} has no head {task!r} of kind {kind} with the labels {listed(labels)}; its heads are "
                f"{', '.join(heads)}"
            )
            if self.complete:
                raise OptionError(f"{why}.{nearest(task, set(self.heads) - {task})}")
            logger.warning(f"The head of the task {task!r} is new: {why}.")
        names = list(saved["labels"] if trained else labels)
        if trained and self.model is None:
            return load_multitask_head(self.name, task), names
        fields = label_fields(names or ["LABEL_0", "LABEL_1"])
        if labels:
            fields["problem_type"] = "single_label_classification"
        model: Any
        if self.model is None:
            model = load_model(KINDS[kind][0], self.name, ignore_mismatched_sizes=True, **fields)
            if model.config.pad_token_id is None:
                model.config.pad_token_id = self.tokenizer.pad_token_id
            return model, names
        fields |= {key: saved[key] for key in HEAD_FIELDS if trained and key in saved}
        config = copy.deepcopy(self.model.config)
        for key, value in fields.items():
            setattr(config, key, value)
        model = auto_mapping(KINDS[kind][0])[LongMultimodalConfig](config, self.model)
        if trained:
            model.classifier = load_multitask_head(self.name, task).classifier
        return model, names


class PreparedTask:
    """A task's model with its head. ``inputs`` are the arguments of Trainer for this task alone."""

    def __init__(self, name: str, kind: str, model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
        self.kind, self.model, self.inputs = kind, model, inputs
        self.collator = inputs.get("eval_collator", inputs["data_collator"])  # without packing
        parts = inputs["train_dataset"], inputs["eval_dataset"]
        if not all(map(len, parts)):
            raise DataError(
                f"The task {name!r} has no rows left to train on, or none to evaluate on; give other data."
            )
        self.rows, self.held_out = (part.add_column("task", [name] * len(part)) for part in parts)


class MultiTaskModel(nn.Module):
    """Several heads on one backbone. Parameters have their checkpoint names: ``heads.NAME.…`` for heads, the family's
    for the backbone.

    All tasks' models share the backbone of one model. Backbones of different classes are refused.
    """

    def __init__(self, tasks: Mapping[str, PreparedTask]) -> None:
        super().__init__()
        models = {name: task.model for name, task in tasks.items()}
        # the largest model has a pooler, if any model has one
        largest = max(models.values(), key=lambda model: sum(1 for _ in model.base_model.parameters()))
        prefix, backbone = largest.base_model_prefix, largest.base_model
        if backbone is largest or len({type(model.base_model) for model in models.values()}) > 1:  # T5
            classes = ", ".join(type(model).__name__ for model in models.values())
            raise OptionError(
                f"The heads {classes} have no backbone in common, which multitask needs; train a model for each task."
            )
        self.config = largest.config
        self.add_module(prefix, backbone)
        self.heads = nn.ModuleDict()
        for name, model in models.items():
            setattr(model, prefix, backbone)
            self.heads[name] = nn.ModuleDict(
                {child: module for child, module in model.named_children() if module is not backbone}
            )
        self.tasks, self.models = tasks, models  # not registered as modules, since each holds the backbone

    def train(self, mode: bool = True) -> MultiTaskModel:
        for model in self.models.values():
            model.training = mode
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        """Methods that Trainer calls on transformers models (embeddings, activation checkpointing). Any of the models
        can serve."""
        if name in ("get_input_embeddings", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
            return getattr(next(iter(self.models.values())), name)
        return super().__getattr__(name)

    def forward(self, task: str, labels: Tensor | None = None, **inputs: Any) -> Any:
        """The outputs of a task's head, with its loss."""
        loss = self.tasks[task].inputs.get("compute_loss_func")
        if loss is None:
            return self.models[task](labels=labels, **inputs)
        outputs = self.models[task](**inputs)
        if labels is not None:
            outputs.loss = loss(outputs, labels)
        return outputs

    def saved_config(self) -> Any:
        """The backbone's config with an entry for each head, for :func:`load_multitask_head`."""
        if (text_model := getattr(next(iter(self.models.values())).base_model, "text_model", None)) is not None:
            self.config.text_config = text_model.config  # tasks changed it after the heads' configs were copied
        self.config.multitask_heads = {
            name: {
                "kind": self.tasks[name].kind,
                "labels": classify.known_classes(model.config),
                **{key: value for key in HEAD_FIELDS if (value := getattr(model.config, key, None)) is not None},
            }
            for name, model in self.models.items()
        }
        return self.config


class MixedCollator(EpochAwareCollator):
    """Batches of one task, made by that task's collator. All collators have the same epoch."""

    def __init__(self, collators: Mapping[str, Any]) -> None:
        self.collators = collators
        for collator in collators.values():
            if isinstance(collator, EpochAwareCollator):
                collator.shared_epoch = self.shared_epoch

    def for_evaluation(self) -> MixedCollator:
        copies = {
            name: each.for_evaluation()
            for name, each in self.collators.items()
            if isinstance(each, EpochAwareCollator)
        }
        mixed: MixedCollator = super().for_evaluation()
        mixed.collators = {**self.collators, **copies}
        return mixed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        name = rows[0]["task"]
        return {
            "task": name,
            **self.collators[name]([{key: value for key, value in row.items() if key != "task"} for row in rows]),
        }


class TaskBatches(EpochSampler):
    """Batches of one task each, as many per epoch as all tasks have together.

    A task is drawn with probability proportional to the square root of its size (T5, section 3.5.2, temperature 2), by
    seed and epoch. A row repeats only after all other rows of its task."""

    def __init__(self, sizes: Mapping[str, int], batch_size: int, seed: int, processes: int = 1) -> None:
        self.sizes, self.size, self.seed = dict(sizes), batch_size, seed
        count = sum(-(-size // batch_size) for size in sizes.values())
        self.count = -(-count // processes) * processes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        def endless(name: str, start: int) -> Iterator[int]:
            choose = random.Random(f"{self.seed}:{self.epoch}:{name}")
            while True:
                yield from (start + number for number in choose.sample(range(self.sizes[name]), self.sizes[name]))

        streams = {
            name: endless(name, start)
            for name, start in zip(self.sizes, accumulate(self.sizes.values(), initial=0), strict=False)
        }
        weights = [size**0.5 for size in self.sizes.values()]
        for name in random.Random(f"{self.seed}:{self.epoch}").choices(list(self.sizes), weights, k=self.count):
            yield [next(streams[name]) for _ in range(min(self.size, self.sizes[name]))]


class MultiTaskTrainer(LongTrainer):
    """Trains a :class:`MultiTaskModel` on batches of one task each, and evaluates every task on its own rows."""

    tasks: Mapping[str, PreparedTask]

    def train_batches(self) -> TaskBatches:
        sizes = {name: len(task.rows) for name, task in self.tasks.items()}
        return TaskBatches(sizes, self.args.train_batch_size, self.args.seed, self.args.world_size)

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """Number of labels per task, ``(tasks,)``. Only the batch's own task is not 0."""
        count = label_count(type(self.tasks[inputs["task"]].model).__name__, inputs)
        count = torch.as_tensor(batch_rows(inputs) if count is None else count)
        return torch.stack([count if name == inputs["task"] else torch.zeros_like(count) for name in self.tasks])

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """As in LongTrainer. A task's weight is its number of batches; labels within a task have equal weight."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if items is None:
            return batches, None
        drawn = torch.stack([self.items_of(batch) > 0 for batch in batches]).sum(0).to(device)
        mean: Any = (
            self.accelerator.reduce(drawn.float(), "mean") if self.args.average_tokens_across_devices else drawn
        )
        return batches, items * mean.sum() / torch.where(mean > 0, mean, 1)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores of every task, named ``NAME_accuracy`` …. ``mean`` averages the tasks' F1, or accuracy if there is no
        F1."""
        metrics: dict[str, float] = {f"{metric_key_prefix}_n": 0}
        main_scores: list[float] = []
        for name, task in self.tasks.items():
            self.compute_metrics = task.inputs["compute_metrics"]
            self.preprocess_logits_for_metrics = task.inputs.get("preprocess_logits_for_metrics", highest)
            prefix = f"{metric_key_prefix}_{name}"
            output = self.evaluation_loop(self.get_eval_dataloader(name), name, metric_key_prefix=prefix)
            metrics |= {key: value for key, value in output.metrics.items() if isinstance(value, (int, float))}
            metrics[f"{metric_key_prefix}_n"] += output.num_samples
            f1 = output.metrics.get(f"{prefix}_f1")
            main_scores.append(output.metrics[f"{prefix}_accuracy"] if f1 is None else f1)
        metrics[f"{metric_key_prefix}_mean"] = sum(main_scores) / len(main_scores)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            self.accelerator.unwrap_model(self.model).saved_config().save_pretrained(
                output_dir or self.args.output_dir
            )
