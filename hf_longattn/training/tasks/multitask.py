"""Train one backbone with several named heads, on texts, images and sound.

Each batch is from one task. A task with more data is drawn more often (:class:`TaskBatches`). The result is one
checkpoint, from which :func:`load_multitask_head` loads a head with the backbone.
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
        parts: name of a task -> its kind, and the data arguments that ``longattn train`` has for this kind alone.
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
        unknown = [*validation, *(task for task, _ in columns if task not in self.parts)]
        if unknown:
            raise OptionError(
                "--columns takes NAME.ROLE=COLUMN, and --validation takes NAME=DATA, with a NAME of "
                f"{', '.join(self.parts)}, not {unknown[0]!r}.{nearest(unknown[0], self.parts)}"
            )


@dataclass
class MultiTaskTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` for several tasks at once.

    By default, the best model is the model with the highest ``mean`` in :meth:`MultiTaskTrainer.evaluate`.
    """

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
    """Train one backbone with a head for each task, evaluate and save it. Returns the log."""
    kinds = {name: kind for name, (kind, _) in data_args.parts.items()}
    if "tokens" in kinds.values():
        check_extra("metrics", "seqeval")
    begin(model_args, data_args, training_args)
    backbone = Backbone(model_args.model, kinds.values(), data_args.image_size, complete=not training_args.do_train)

    # Each task: its rows, the backbone with its head, and Trainer's arguments for the task alone
    tasks = {}
    for name, (kind, args) in data_args.parts.items():
        args.only_scores = data_args.only_scores
        _, _, read, labels_of, make_inputs = KINDS[kind]
        parts = read(args, seed=training_args.seed)
        model, names = backbone.head(name, kind, labels_of(*parts))
        processors = {"images": backbone.image_processor, "audio": backbone.feature_extractor}
        processor: Any = processors.get(kind, backbone.tokenizer)
        inputs = make_inputs(model, parts, names, args, training_args, processor)
        if kind == "audio":  # embed the longest sound now, because the model raises an error if it is too long
            lengths = inputs["train_dataset"]["length"][:]
            longest = inputs["data_collator"]([inputs["train_dataset"][lengths.index(max(lengths))]])
            model.multimodal.embedded(None, longest["input_features"], longest.get("attention_mask"))
        tasks[name] = PreparedTask(name, kind, model, {"compute_metrics": classify.class_scores, **inputs})
        for key, count in args.scored_rows.items():
            data_args.scored_rows[key] = data_args.scored_rows.get(key, 0) + count

    # One model and one trainer for all tasks
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
    lambda *parts: (),  # spans have no labels
    qa.question_inputs,
)
"""Kind of task -> five things that the task's own command uses: the class that loads its model, the class of its data
arguments, and the functions that read its rows, find the labels in them, and make Trainer's arguments."""


HEAD_FIELDS = ("question_separator_id", "no_answer_threshold")
"""Fields of a config that belong to a head and are saved with it, besides its labels."""
IMAGE_SIZE, PATCH, MEL_BINS = 224, 16, 80
"""Sizes of new embedders: sides of an image and of a patch in pixels, as in ViT, and number of mel bins in a
spectrogram, as in Speech2Text."""


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
    """The base model that the tasks share. If a task needs them, a text model gets embedders for images and sound.

    Attributes:
        tokenizer, image_processor, feature_extractor: processors of inputs. ``None`` if the model does not read them.
        model: a model with several modalities. ``None`` if the model only reads text: then each head is loaded with
            the checkpoint's own architecture.
        heads: the ``multitask_heads`` in the checkpoint's config, see :meth:`MultiTaskModel.saved_config`.

    Args:
        name: a checkpoint of a model of text, or of several modalities.
        kinds: the kinds of the tasks, keys of :data:`KINDS`.
        image_size: side of images for a new embedder; default: :data:`IMAGE_SIZE`.
        complete: whether the checkpoint must have the heads, because nothing is trained.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or has no heads though ``complete`` is set.
        OptionError: ``image_size`` is given, but no new embedder of images is needed.
    """

    def __init__(
        self, name: str, kinds: Collection[str], image_size: int | None = None, *, complete: bool = False
    ) -> None:
        config: Any = load_config(name)
        self.name, self.complete, self.heads = name, complete, getattr(config, "multitask_heads", {})
        if complete and not self.heads:
            raise CheckpointError(
                f"{name!r} has no heads of longattn train multitask; type longattn evaluate TASK for a model with one "
                "head."
            )

        # The checkpoint's own processors
        self.tokenizer = load_padding_tokenizer(name, config)
        self.tokenizer.padding_side = self.tokenizer.truncation_side = "right"  # as the tasks tokens and qa need it
        is_multimodal = isinstance(config, LongMultimodalConfig)
        embedded = config.embedded if is_multimodal else {}
        self.image_processor = load_part(transformers.AutoImageProcessor, name) if "images" in embedded else None
        self.feature_extractor = load_part(transformers.AutoFeatureExtractor, name) if "sound" in embedded else None

        # New embedders and their processors
        new = dict[str, Any]()
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
        if is_multimodal:
            self.model = load_model(LongMultimodalModel, name, complete=complete).with_embedders(**new)
        elif new:
            self.heads = {}
            self.model = LongMultimodalModel.of(load_model(AutoModel, name, **without_pooler(config)), **new)

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Save the tokenizer, and the image processor and feature extractor in one file, as transformers does."""
        self.tokenizer.save_pretrained(folder, **settings)
        parts = {"image_processor": self.image_processor, "feature_extractor": self.feature_extractor}
        values = {name: json.loads(part.to_json_string()) for name, part in parts.items() if part is not None}
        Path(folder, PROCESSOR_NAME).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def head(self, task: str, kind: str, labels: Sequence[str] = ()) -> tuple[Any, list[str]]:
        """The model with the head of a task, and the names of the head's classes.

        If the checkpoint has a head with this name and kind and all labels, it is used. Otherwise, the head is new. If
        nothing is trained, a new head is refused.

        Args:
            labels: labels of the data; none for spans.
        """
        saved = self.heads.get(task, {})
        is_saved = saved.get("kind") == kind and set(labels) <= set(saved["labels"])
        if not is_saved and self.heads:
            heads = [f"{name} ({entry['kind']}: {listed(entry['labels'])})" for name, entry in self.heads.items()]
            lacks = (
                f"{self.name!r} has no head {task!r} of kind {kind} with the labels {listed(labels)}; its heads are "
                f"{', '.join(heads)}"
            )
            if self.complete:
                raise OptionError(f"{lacks}.{nearest(task, set(self.heads) - {task})}")
            logger.warning(f"The head of the task {task!r} is new: {lacks}.")
        names = list(saved["labels"] if is_saved else labels)
        fields = label_fields(names or ["LABEL_0", "LABEL_1"])
        if labels:
            fields["problem_type"] = "single_label_classification"
        loader, *_ = KINDS[kind]
        model: Any

        # A model of text is loaded with its head.
        if self.model is None:
            if is_saved:
                return load_multitask_head(self.name, task), names
            model = load_model(loader, self.name, ignore_mismatched_sizes=True, **fields)
            if model.config.pad_token_id is None:
                model.config.pad_token_id = self.tokenizer.pad_token_id
            return model, names

        # A model of several modalities gets the head.
        if is_saved:
            fields |= {key: saved[key] for key in HEAD_FIELDS if key in saved}
        config = copy.deepcopy(self.model.config)
        for key, value in fields.items():
            setattr(config, key, value)
        model = auto_mapping(loader)[LongMultimodalConfig](config, self.model)
        if is_saved:
            model.classifier = load_multitask_head(self.name, task).classifier
        return model, names


class PreparedTask:
    """A task with its model, collator, and training and evaluation rows, which get a column ``task`` with its name.

    Args:
        model: the backbone with the head of the task.
        inputs: arguments of Trainer for this task alone.

    Raises:
        DataError: there are no rows to train on, or none to evaluate on.
    """

    def __init__(self, name: str, kind: str, model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
        self.kind, self.model, self.inputs = kind, model, inputs
        self.collator = inputs.get("eval_collator", inputs["data_collator"])  # the one for evaluations does not pack
        parts = inputs["train_dataset"], inputs["eval_dataset"]
        if not all(map(len, parts)):
            raise DataError(
                f"The task {name!r} has no rows left to train on, or none to evaluate on; give other data."
            )
        self.rows, self.held_out = (part.add_column("task", [name] * len(part)) for part in parts)


class MultiTaskModel(nn.Module):
    """Several heads on one backbone.

    Parameters have the names that they have in the checkpoint: ``heads.NAME.…`` in heads, and the usual names of the
    model type in the backbone. All heads are put on the backbone of one of the tasks' models.

    Raises:
        OptionError: the tasks' models have backbones of different classes, or no separate backbone.
    """

    def __init__(self, tasks: Mapping[str, PreparedTask]) -> None:
        super().__init__()
        models = {name: task.model for name, task in tasks.items()}
        # Take the backbone with most parameters: if any backbone has a pooler, this one has.
        largest = max(models.values(), key=lambda model: sum(1 for _ in model.base_model.parameters()))
        prefix, backbone = largest.base_model_prefix, largest.base_model
        classes_of_backbones = {type(model.base_model) for model in models.values()}
        if backbone is largest or len(classes_of_backbones) > 1:  # some heads of T5 are their own backbones
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
        self.tasks, self.models = tasks, models  # not registered as modules, because each model has the backbone

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Set the mode of all modules, and of the tasks' models, which are not registered."""
        for model in self.models.values():
            model.training = mode
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        """Take methods that Trainer calls (embeddings, activation checkpointing) from the first task's model.

        Any task's model would do, because these methods act on the backbone.
        """
        if name in ("get_input_embeddings", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
            return getattr(next(iter(self.models.values())), name)
        return super().__getattr__(name)

    def forward(self, task: str, labels: Tensor | None = None, **inputs: Any) -> Any:
        """The outputs of a task's model, with the loss of the model or of the task's ``compute_loss_func``."""
        loss_function = self.tasks[task].inputs.get("compute_loss_func")
        if loss_function is None:
            return self.models[task](labels=labels, **inputs)
        outputs = self.models[task](**inputs)
        if labels is not None:
            outputs.loss = loss_function(outputs, labels)
        return outputs

    def saved_config(self) -> Any:
        """The backbone's config with the field ``multitask_heads``, which :func:`load_multitask_head` reads.

        The field has an entry for each head by name: ``kind``, ``labels``, and those of :data:`HEAD_FIELDS` that are
        set.
        """
        first_model = next(iter(self.models.values()))
        text_model = getattr(first_model.base_model, "text_model", None)
        if text_model is not None:
            self.config.text_config = text_model.config  # tasks changed it after the heads' configs were copied
        heads = {}
        for name, model in self.models.items():
            heads[name] = {"kind": self.tasks[name].kind, "labels": classify.known_classes(model.config)}
            for key in HEAD_FIELDS:
                value = getattr(model.config, key, None)
                if value is not None:
                    heads[name][key] = value
        self.config.multitask_heads = heads
        return self.config


class MixedCollator(EpochAwareCollator):
    """Passes the rows of a batch, which are of one task, to the task's own collator. All collators share one epoch.

    Args:
        collators: name of a task -> its collator.
    """

    def __init__(self, collators: Mapping[str, Any]) -> None:
        self.collators = collators
        for collator in collators.values():
            if isinstance(collator, EpochAwareCollator):
                collator.shared_epoch = self.shared_epoch

    def for_evaluation(self) -> MixedCollator:
        """A copy for evaluations, with the tasks' collators for evaluations."""
        mixed: MixedCollator = super().for_evaluation()
        mixed.collators = {
            name: collator.for_evaluation() if isinstance(collator, EpochAwareCollator) else collator
            for name, collator in self.collators.items()
        }
        return mixed

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of the task's collator, with the task's name as ``task``."""
        name = rows[0]["task"]
        task_rows = [{key: value for key, value in row.items() if key != "task"} for row in rows]
        return {"task": name, **self.collators[name](task_rows)}


class TaskBatches(EpochSampler):
    """Batches of one task each, as lists of row numbers. An epoch has as many batches as all tasks have together.

    A task is drawn with a probability proportional to the square root of its number of rows (T5, section 3.5.2,
    temperature 2), by seed and epoch. A row repeats only after all other rows of its task.

    Args:
        sizes: name of a task -> its number of rows. The rows of all tasks are numbered in this order.
        processes: number of processes. The number of batches is a multiple of it.
    """

    def __init__(self, sizes: Mapping[str, int], batch_size: int, seed: int, processes: int = 1) -> None:
        self.sizes, self.size, self.seed = dict(sizes), batch_size, seed
        count = sum(-(-size // batch_size) for size in sizes.values())
        self.count = -(-count // processes) * processes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of an epoch."""

        def endless(name: str, start: int) -> Iterator[int]:
            """Row numbers of a task, each pass in another order. ``start`` is its first row number."""
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
        """Number of labels of each task in a batch, ``(tasks,)``. It is 0 for all but one task."""
        count = label_count(type(self.tasks[inputs["task"]].model).__name__, inputs)
        count = torch.as_tensor(batch_rows(inputs) if count is None else count)
        return torch.stack([count if name == inputs["task"] else torch.zeros_like(count) for name in self.tasks])

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The batches of a step, and the number of labels of each task, scaled by the task's weight in the step.

        The weight of a task is its share of the batches. All labels of a task have the same weight.
        """
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if items is None:
            return batches, None
        counts: Any = torch.stack([self.items_of(batch) > 0 for batch in batches]).sum(0).to(device)
        if self.args.average_tokens_across_devices:
            counts = self.accelerator.reduce(counts.float(), "mean")
        # The summed loss of a task is divided by its number here, so that its mean loss has the weight count / sum.
        return batches, items * counts.sum() / torch.where(counts > 0, counts, 1)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Scores of every task, such as ``TASK_accuracy``, and ``mean``.

        ``mean`` is the mean over tasks of F1, or of the accuracy for tasks without F1.
        """
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
        """Save as in Trainer, and the config, which Trainer saves only for models of transformers."""
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            config = self.accelerator.unwrap_model(self.model).saved_config()
            config.save_pretrained(output_dir or self.args.output_dir)
