"""The backbone and heads of `longattn train multitask`: of texts alone, or of texts, images and sound."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Speech2TextFeatureExtractor,
)
from transformers.utils import logging

from hf_longattn.errors import CheckpointError, OptionError, listed, nearest
from hf_longattn.inputs.processors import PROCESSOR_FILE
from hf_longattn.loading import label_fields, load_config, load_model, load_padding_tokenizer, load_part
from hf_longattn.modeling.family.registration import auto_mapping
from hf_longattn.modeling.multimodal import AudioInput, ImageInput, LongMultimodalConfig, LongMultimodalModel, head_on, without_pooler
from hf_longattn.names import LOGGER

logger = logging.get_logger(LOGGER)
LOADERS: dict[str, Any] = {
    "classify": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
    "images": AutoModelForImageClassification,
    "audio": AutoModelForAudioClassification,
}
"""Kind of task -> the class that loads its model."""
HEAD_FIELDS = ("question_separator_id", "no_answer_threshold")
"""Fields of a head's config that are saved with it, besides its labels."""
IMAGE_SIZE, PATCH, MEL_BINS = 224, 16, 80
"""Pixels of the sides of images and of patches, as in ViT, and mel bins of spectrograms, for new embedders."""


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
    entry, others = heads[head], ("",)  # all other weights belong to other heads
    options = {"key_mapping": {rf"^heads\.{head}\.": ""}, "elsewhere": others, **label_fields(entry["labels"])}
    model: PreTrainedModel = load_model(LOADERS[entry["kind"]], name, complete=True, **options)
    for key in HEAD_FIELDS:
        if key in entry:
            setattr(model.config, key, entry[key])
    return model


@dataclass(frozen=True)
class InputProcessors:
    """The processors of a model of several modalities; ``None`` = it does not read such inputs."""

    tokenizer: Any
    image_processor: Any = None
    feature_extractor: Any = None

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Write all of them into a folder, from which ``AutoTokenizer``, ``AutoImageProcessor`` and ``AutoFeatureExtractor`` load."""
        self.tokenizer.save_pretrained(folder, **settings)
        parts = {"image_processor": self.image_processor, "feature_extractor": self.feature_extractor}
        values = {name: json.loads(part.to_json_string()) for name, part in parts.items() if part is not None}
        if values:
            Path(folder, PROCESSOR_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Backbone:
    """The base of heads of several kinds. A backbone of texts gets new embedders of images and of sound where tasks need them.

    Attributes: ``processors`` of the inputs; ``model``, of several modalities, or ``None`` where every head is of the checkpoint's own
    architecture; and ``heads``, those of the checkpoint, see :meth:`~hf_longattn.training.mixed.MultiTaskModel.saved_config`.

    Args:
        name: a checkpoint of texts, or one of several modalities.
        kinds: of the tasks.
        image_size: sides of the images of a new embedder; default: :data:`IMAGE_SIZE`.
        complete: nothing is trained, so the checkpoint must have the heads.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or has no heads.
        OptionError: no new embedder takes ``image_size``.
        InputError: the checkpoint is too short for the images.
    """

    def __init__(self, name: str, kinds: Collection[str], image_size: int | None = None, *, complete: bool = False) -> None:
        self.name, self.complete = name, complete
        config: Any = load_config(name)
        tokenizer = load_padding_tokenizer(name, config)
        tokenizer.padding_side = tokenizer.truncation_side = "right"  # tokens have the places of their words, and windows their order
        heads: Mapping[str, Any] = getattr(config, "multitask_heads", {})
        several = isinstance(config, LongMultimodalConfig)
        if complete and not heads:
            raise CheckpointError(f"{name!r} has no heads of longattn train multitask; type longattn evaluate TASK for one with a head.")
        embedded, new = config.embedded if several else {}, dict[str, Any]()
        image_processor = load_part(AutoImageProcessor, name) if "images" in embedded else None
        extractor = load_part(AutoFeatureExtractor, name) if "sound" in embedded else None
        if image_size and ("images" not in kinds or image_processor is not None):
            raise OptionError("--image-size is for a task of kind images, on a model that does not read images yet; leave it out.")
        if "images" in kinds and image_processor is None and not complete:
            side = image_size or IMAGE_SIZE
            new["images"] = ImageInput((side, side), PATCH)
            image_processor = transformers.ViTImageProcessor(size={"height": side, "width": side})
        if "audio" in kinds and extractor is None and not complete:
            new["sound"] = AudioInput(MEL_BINS)
            # Not normalised over the audio file, which would remove a steady sound: the embedder normalises each frame.
            extractor = Speech2TextFeatureExtractor(feature_size=MEL_BINS, num_mel_bins=MEL_BINS, do_ceptral_normalize=False)
        model: Any = None
        if several:
            model = load_model(LongMultimodalModel, name, complete=complete, elsewhere=("heads.", "classifier.")).with_embedders(**new)
        elif new:
            model, heads = LongMultimodalModel.of(load_model(AutoModel, name, **without_pooler(config)), **new), {}
        self.heads, self.model, self.processors = heads, model, InputProcessors(tokenizer, image_processor, extractor)

    def head(self, task: str, kind: str, labels: Sequence[str] = ()) -> tuple[PreTrainedModel, list[str]]:
        """The model with the head of a task, and its classes. The checkpoint's head of this name and kind is used if it knows all labels.

        Args:
            task: its name.
            kind: one of :data:`LOADERS`.
            labels: of the data; none for spans.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            OptionError: a new head is refused.
        """
        loader, saved = LOADERS[kind], self.heads.get(task, {})
        trained = saved.get("kind") == kind and set(labels) <= set(saved["labels"])
        if not trained and (self.complete or self.heads):
            known = ", ".join(f"{name} ({entry['kind']}: {listed(entry['labels'])})" for name, entry in self.heads.items())
            why = f"{self.name!r} has no head {task!r} of kind {kind} with the labels {listed(labels)}; its heads are {known}"
            if self.complete:
                raise OptionError(f"{why}.{nearest(task, set(self.heads) - {task})}")
            logger.warning(f"The head of the task {task!r} is new: {why}.")
        names = list(saved["labels"] if trained else labels)
        if trained and self.model is None:
            return load_multitask_head(self.name, task), names
        fields = label_fields(names or ["LABEL_0", "LABEL_1"]) | ({"problem_type": "single_label_classification"} if labels else {})
        model: Any
        if self.model is not None:
            saved_fields = {key: saved[key] for key in HEAD_FIELDS if trained and key in saved}
            model = head_on(auto_mapping(loader)[LongMultimodalConfig], self.model, **fields, **saved_fields)
            if trained:
                model.classifier = load_multitask_head(self.name, task).classifier
        else:
            model = load_model(loader, self.name, ignore_mismatched_sizes=True, elsewhere=("heads.",), **fields)
            if model.config.pad_token_id is None:
                model.config.pad_token_id = self.processors.tokenizer.pad_token_id
        return model, names
