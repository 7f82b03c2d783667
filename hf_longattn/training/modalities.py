"""Load a model of texts, or of several modalities on one backbone, with its heads, for a training on several tasks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    PreTrainedTokenizerBase,
    Speech2TextFeatureExtractor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import logging

from hf_longattn.data.audio import Hearing
from hf_longattn.errors import CheckpointError, InputError, OptionError, listed, nearest
from hf_longattn.inputs.processors import FILE, PROCESSOR_FILE
from hf_longattn.loading import load_config, load_model, load_part
from hf_longattn.modeling.family.registration import auto_mapping, mapped_names
from hf_longattn.modeling.multimodal import (
    AudioInput,
    ImageInput,
    LongMultimodalConfig,
    LongMultimodalForAudioClassification,
    LongMultimodalForImageClassification,
    LongMultimodalForQuestionAnswering,
    LongMultimodalForSequenceClassification,
    LongMultimodalForTokenClassification,
    LongMultimodalModel,
    head_on,
    without_pooler,
)
from hf_longattn.names import LOGGER
from hf_longattn.training.loading import SPAN_LABELS, config_with_head, label_config, load_head, load_start

logger = logging.get_logger(LOGGER)
LOADERS = {
    "classify": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
    "images": AutoModelForImageClassification,
    "audio": AutoModelForAudioClassification,
}
"""Kind of task -> the class that loads its model."""
HEADS = {
    "classify": LongMultimodalForSequenceClassification,
    "tokens": LongMultimodalForTokenClassification,
    "qa": LongMultimodalForQuestionAnswering,
    "images": LongMultimodalForImageClassification,
    "audio": LongMultimodalForAudioClassification,
}
"""Kinds of tasks, and their heads on a model of several modalities."""


LEAST_MEL_BINS, MOST_MEL_BINS = 8, 96
"""With more, filters at low frequencies would be empty."""


@dataclass(frozen=True)
class InputProcessors:
    """Makes the inputs of a model of several modalities; ``None`` = it does not read such inputs.

    tokenizer: of texts.
    image_processor: of images.
    feature_extractor: of audio files.
    """

    tokenizer: Any
    image_processor: Any | None = None
    feature_extractor: Any | None = None

    def save_pretrained(self, folder: str | Path, **settings: Any) -> None:
        """Write all of them into a folder, from which ``AutoTokenizer``, ``AutoImageProcessor`` and ``AutoFeatureExtractor`` load."""
        self.tokenizer.save_pretrained(folder, **settings)
        parts = {"image_processor": self.image_processor, "feature_extractor": self.feature_extractor}
        values = {name: json.loads(part.to_json_string()) for name, part in parts.items() if part is not None}
        if values:
            Path(folder, PROCESSOR_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def new_image_processor(size: tuple[int, int]) -> Any:
    """ViT's image processor for images of a height and a width, as transformers chooses it for the libraries that are installed."""
    fields = {"image_processor_type": "ViTImageProcessor", "size": {"height": size[0], "width": size[1]}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, FILE).write_text(json.dumps(fields), encoding="utf-8")
        return load_part(AutoImageProcessor, folder, local_files_only=True)


def new_feature_extractor(mel_bins: int) -> Any:
    """A feature extractor of log-mel spectrograms with 100 frames a second, of whole audio files. They are not normalised over the audio
    file, since that would remove a steady sound. The embedder normalises each frame.

    Raises:
        OptionError: a number of mel bins for which there are no filters.
    """
    if not LEAST_MEL_BINS <= mel_bins <= MOST_MEL_BINS:
        raise OptionError(f"--mel-bins must be from {LEAST_MEL_BINS} to {MOST_MEL_BINS}, not {mel_bins}.")
    return Speech2TextFeatureExtractor(feature_size=mel_bins, num_mel_bins=mel_bins, do_ceptral_normalize=False)


@dataclass
class Start:
    """The base of new heads.

    name: the checkpoint.
    processors: of the inputs.
    model: of several modalities; ``None`` = every head is of the checkpoint's own architecture.
    heads: the checkpoint's, from ``multitask_heads`` of its config: the task's name -> kind, labels and fields of its config.
    only_scores: use the checkpoint's heads only; otherwise a task without one gets a new head.
    """

    name: str
    processors: InputProcessors
    model: LongMultimodalModel | None = None
    heads: Mapping[str, Any] = field(default_factory=dict)
    only_scores: bool = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of texts."""
        tokenizer: PreTrainedTokenizerBase = self.processors.tokenizer
        return tokenizer

    def head(self, task: str, kind: str, labels: Sequence[str] = ()) -> tuple[PreTrainedModel, list[str]]:
        """The model with the head of a task, and its classes. The checkpoint's head of this name and kind is used if it knows all labels.

        Args:
            task: its name.
            kind: one of :data:`LOADERS`.
            labels: of the data; none for spans.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
            OptionError: the model is only scored and has no head for this task.
        """
        entry = self.heads.get(task)
        if entry is None:
            why = f"its heads are {', '.join(self.heads)}"
        elif entry["kind"] != kind:
            why = f"its head {task!r} is of kind {entry['kind']}, not {kind}"
        elif unknown := set(labels) - set(entry["labels"]):
            why = f"its head {task!r} has the classes {listed(entry['labels'])}, and the data have the labels {listed(unknown)}"
        else:
            model = load_multitask_head(self.name, task)
            if self.model is None:
                return model, entry["labels"]
            head = head_on(HEADS[kind], self.model, **label_config(entry["labels"]), **fields_of(entry))
            head.classifier = model.classifier
            return head, entry["labels"]
        if self.only_scores:
            raise OptionError(f"{self.name!r} has no head for the task {task!r}: {why}.{nearest(task, set(self.heads) - {task})}")
        if self.heads:
            logger.warning(f"{self.name}: the head of the task {task!r} is new, since {why}.")
        fields = {**label_config(list(labels)), "problem_type": "single_label_classification"} if labels else SPAN_LABELS
        if self.model is not None:
            return head_on(HEADS[kind], self.model, **fields), list(labels)
        return load_head(LOADERS[kind], self.name, self.tokenizer, complete=False, elsewhere=("heads.",), **fields), list(labels)

    def reads_text(self, model: PreTrainedModel) -> PreTrainedModel:
        """The text model of a head: the backbone, or the head itself."""
        return model if self.model is None else self.model.text_model

    def check_longest(self, hearing: Hearing, row: Any) -> None:
        """Refuse an audio file of more tokens than the backbone reads, before the training.

        Raises:
            InputError: the audio file is too long for the backbone.
        """
        assert self.model is not None
        frames = hearing.length(hearing.samples(row))
        tokens, longest = self.model.config.sound.tokens(frames), self.model.longest
        if longest is not None and tokens > longest:
            raise InputError(
                f"{row['name']} is {tokens:,} tokens of frames, but the backbone reads {longest:,}; leave it out, or convert the backbone "
                f"with --max-length {tokens}."
            )


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
    loader: Any = LOADERS[entry["kind"]]
    arguments = {"key_mapping": {rf"^heads\.{head}\.": ""}, **label_config(entry["labels"])}
    others = ("",)  # other weights belong to other heads
    model: PreTrainedModel = load_model(loader, name, complete=True, elsewhere=others, **arguments)
    for key, value in fields_of(entry).items():
        setattr(model.config, key, value)
    return model


def fields_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a head's config in its entry of ``multitask_heads``."""
    return {key: value for key, value in entry.items() if key not in ("kind", "labels")}


def load_multimodal_start(
    name: str, kinds: Collection[str], images: ImageInput | None, mel_bins: int, subsampling: int, *, only_scores: bool = False
) -> Start:
    """The model and heads for tasks of these kinds.

    Args:
        name: a checkpoint of texts, or one of several modalities.
        images: of a new embedder; ``None`` = none.
        mel_bins: of a new embedder of audio files; 0 = none.
        subsampling: see :class:`AudioInput`.
        only_scores: nothing is trained, so the checkpoint must have the heads.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or has no heads.
        OptionError: a task lacks an embedder, or a new embedder has no task or exists already.
        BackendError, InputError: the checkpoint is no such backbone, or too short for the images.
    """
    for kind, option, wanted in (("images", "--image-size", images is not None), ("audio", "--mel-bins", mel_bins > 0)):
        if wanted and kind not in kinds:
            raise OptionError(f"{option} is for tasks of kind {kind}; add --tasks NAME={kind}:DATA, or leave it out.")
    config, tokenizer = load_start(name, "classes of words or documents", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    heads: Mapping[str, Any] = getattr(config, "multitask_heads", {})
    if only_scores and not heads:
        raise CheckpointError(f"{name!r} has no heads of longattn train multitask; type longattn evaluate TASK for a model with one head.")
    is_multimodal = isinstance(config, LongMultimodalConfig)
    if not is_multimodal and (only_scores or not {"images", "audio"} & set(kinds)):
        for kind in sorted({*kinds} & {*LOADERS}):
            config_with_head(name, f"tasks of kind {kind}", mapped_names(auto_mapping(LOADERS[kind]))[0])
        return Start(name, InputProcessors(tokenizer), None, heads, only_scores)
    embedded = config.embedded if isinstance(config, LongMultimodalConfig) else {}
    present = {"images": "images" in embedded, "audio": "sound" in embedded}
    advice = {"images": "--image-size 224 224 --patch-size 16", "audio": "--mel-bins 80"}
    new = {"images": images is not None, "audio": mel_bins > 0}
    for kind, options in advice.items():
        if kind in kinds and not present[kind] and not new[kind] and not only_scores:
            raise OptionError(f"A task of kind {kind} needs an embedder of {kind}, and {name!r} has none; add {options}.")
        if present[kind] and new[kind]:
            raise OptionError(f"{name!r} has an embedder of {kind} already; leave {options.split()[0]} out.")
    image_processor = load_part(AutoImageProcessor, name) if present["images"] else None
    extractor = load_part(AutoFeatureExtractor, name) if present["audio"] else None
    sound = None
    if images is not None:
        image_processor = new_image_processor(images.size)
    if mel_bins:
        extractor = new_feature_extractor(mel_bins)
        sound = AudioInput(extractor.feature_size, subsampling)
    if is_multimodal:
        saved = load_model(LongMultimodalModel, name, complete=only_scores, elsewhere=("heads.", "classifier."))
        model = saved.with_embedders(images=images, sound=sound)
    else:
        backbone = load_model(AutoModel, name, **without_pooler(config))
        model, heads = LongMultimodalModel.of(backbone, images=images, sound=sound), {}
    return Start(name, InputProcessors(tokenizer, image_processor, extractor), model, heads, only_scores)
