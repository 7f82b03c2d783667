"""Training on several tasks at once: a model with several heads, batches of one task each, and their Trainer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_longattn.data.batching import EpochAwareCollator, EpochSampler
from hf_longattn.errors import OptionError
from hf_longattn.modeling.run.losses import label_count
from hf_longattn.training.modalities import HEAD_FIELDS
from hf_longattn.training.tasks.qa import span_loss
from hf_longattn.training.trainer import LongTrainer, highest, rows_of


class MultiTaskModel(nn.Module):
    """Several heads on one backbone. Parameters have the names of checkpoints: the backbone's as in its family, the heads' with the prefix
    ``heads.NAME.``.

    Args:
        models: the task's name -> the model with its head. The backbone of one of them replaces those of the others.
        kinds: the task's name -> its kind, of :data:`~hf_longattn.training.modalities.LOADERS`.

    Raises:
        OptionError: the backbones are of several classes.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel], kinds: Mapping[str, str]) -> None:
        super().__init__()
        largest = max(models.values(), key=lambda model: sum(1 for _ in model.base_model.parameters()))  # the one with a pooler, if any
        prefix, backbone = largest.base_model_prefix, largest.base_model
        if backbone is largest or len({type(model.base_model) for model in models.values()}) > 1:  # T5
            classes = ", ".join(type(model).__name__ for model in models.values())
            raise OptionError(f"The heads {classes} have no backbone in common, which multitask needs; train a model for each task.")
        self.config = largest.config
        self.add_module(prefix, backbone)
        self.heads = nn.ModuleDict()
        for name, model in models.items():
            setattr(model, prefix, backbone)
            self.heads[name] = nn.ModuleDict({child: module for child, module in model.named_children() if module is not backbone})
        self.models, self.kinds = dict(models), dict(kinds)  # not registered as modules, since each holds the backbone

    def train(self, mode: bool = True) -> MultiTaskModel:
        for model in self.models.values():
            model.training = mode
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        """What Trainer asks of a model of transformers: its embeddings, and checkpointing of activations. Any of the models has them."""
        if name in ("get_input_embeddings", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
            return getattr(next(iter(self.models.values())), name)
        return super().__getattr__(name)

    def forward(self, task: str, labels: Tensor | None = None, **inputs: Any) -> Any:
        """The outputs of a task's head, with its loss."""
        if self.kinds[task] != "qa":
            return self.models[task](labels=labels, **inputs)
        outputs = self.models[task](**inputs)
        if labels is not None:
            outputs.loss = span_loss(outputs, labels)
        return outputs

    def saved_config(self) -> Any:
        """The backbone's config with an entry for each head, for :func:`load_multitask_head`."""
        self.config.multitask_heads = {
            name: {
                "kind": self.kinds[name],
                "labels": [str(label) for _, label in sorted(model.config.id2label.items())],
                **{key: value for key in HEAD_FIELDS if (value := getattr(model.config, key, None)) is not None},
            }
            for name, model in self.models.items()
        }
        return self.config


class MixedCollator(EpochAwareCollator):
    """Batches of one task, made by that task's collator. All collators have the same epoch."""

    def __init__(self, collators: Mapping[str, Any]) -> None:
        self.count_epochs()
        self.collators = collators
        for collator in collators.values():
            if isinstance(collator, EpochAwareCollator):
                collator.shared_epoch = self.shared_epoch

    def for_evaluation(self) -> MixedCollator:
        copies = {name: each.for_evaluation() for name, each in self.collators.items() if isinstance(each, EpochAwareCollator)}
        return MixedCollator({**self.collators, **copies})

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        name = rows[0]["task"]
        return {"task": name, **self.collators[name]([{key: value for key, value in row.items() if key != "task"} for row in rows])}


class TaskBatches(EpochSampler):
    """Batches of one task each. An epoch has as many batches as all tasks together. The task of each batch is drawn in proportion to the
    square root of its size (T5, section 3.5.2, with a temperature of 2), by seed and epoch; a task's rows come in turn."""

    def __init__(self, sizes: Mapping[str, int], batch_size: int, seed: int, processes: int = 1) -> None:
        self.sizes, self.size, self.seed = dict(sizes), batch_size, seed
        count = sum(-(-size // batch_size) for size in sizes.values())
        self.count = -(-count // processes) * processes
        self.batch_size, self.drop_last = None, False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[int]]:
        def endless(name: str, start: int) -> Iterator[int]:
            choose = random.Random(f"{self.seed}:{self.epoch}:{name}")
            while True:
                yield from (start + number for number in choose.sample(range(self.sizes[name]), self.sizes[name]))

        streams = {name: endless(name, start) for name, start in zip(self.sizes, accumulate(self.sizes.values(), initial=0), strict=False)}
        weights = [size**0.5 for size in self.sizes.values()]
        for name in random.Random(f"{self.seed}:{self.epoch}").choices(list(self.sizes), weights, k=self.count):
            yield [next(streams[name]) for _ in range(min(self.size, self.sizes[name]))]


class MultiTaskTrainer(LongTrainer):
    """Trains a :class:`MultiTaskModel` on batches of one task each, evaluates every task on its own rows, and saves the heads' config.

    tasks: the task's name -> its model, ``rows``, ``scores`` (of predictions) and ``collator``; set after the construction.
    """

    tasks: Mapping[str, Any]

    def train_batches(self) -> TaskBatches:
        """Batches of one task each."""
        sizes = {name: len(task.rows) for name, task in self.tasks.items()}
        return TaskBatches(sizes, self.args.train_batch_size, self.args.seed, self.args.world_size)

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """The number of labels by task ``(tasks,)``: 0 for every task but the batch's."""
        count = label_count(type(self.tasks[inputs["task"]].model).__name__, inputs)
        count = torch.as_tensor(rows_of(inputs) if count is None else count)
        return torch.stack([count if name == inputs["task"] else torch.zeros_like(count) for name in self.tasks])

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Tensor | None]:
        """As LongTrainer's. Tasks count by their batches, and labels within a task count equally."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if items is None:
            return batches, None
        drawn = torch.stack([self.items_of(batch) > 0 for batch in batches]).sum(0).to(device)
        mean: Any = self.accelerator.reduce(drawn.float(), "mean") if self.args.average_tokens_across_devices else drawn
        return batches, items * mean.sum() / torch.where(mean > 0, mean, 1)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The scores of every task as ``NAME_accuracy`` …, and the mean of their main scores, ``mean``: F1, or else accuracy."""
        model = self.accelerator.unwrap_model(self.model)
        metrics: dict[str, float] = {f"{metric_key_prefix}_n": 0}
        main_scores: list[float] = []
        for name, task in self.tasks.items():
            self.compute_metrics = task.scores
            self.preprocess_logits_for_metrics = (lambda logits, labels: logits[:2]) if model.kinds[name] == "qa" else highest
            output = self.evaluation_loop(self.get_eval_dataloader(name), name, metric_key_prefix=f"{metric_key_prefix}_{name}")
            metrics |= output.metrics
            metrics[f"{metric_key_prefix}_n"] += output.num_samples
            scores = {key.removeprefix(f"{metric_key_prefix}_{name}_"): score for key, score in output.metrics.items()}
            main_scores.append(scores["f1"] if "f1" in scores else scores["accuracy"])
        metrics[f"{metric_key_prefix}_mean"] = sum(main_scores) / len(main_scores)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            self.accelerator.unwrap_model(self.model).saved_config().save_pretrained(output_dir or self.args.output_dir)
