"""What a training of several tasks starts from: a model of texts, or one of several modalities on a shared backbone, and its heads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
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
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.audio import Hearing
from hf_longattn.data.modalities import InputProcessors, new_feature_extractor, new_image_processor
from hf_longattn.errors import AudioError, OptionError
from hf_longattn.loading import load_model, load_part
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
from hf_longattn.training.loading import load_head, load_start

LOADERS = {
    "classify": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "qa": AutoModelForQuestionAnswering,
    "images": AutoModelForImageClassification,
    "audio": AutoModelForAudioClassification,
}
"""Kinds of tasks, and what loads a model of each."""
HEADS = {
    "classify": LongMultimodalForSequenceClassification,
    "tokens": LongMultimodalForTokenClassification,
    "qa": LongMultimodalForQuestionAnswering,
    "images": LongMultimodalForImageClassification,
    "audio": LongMultimodalForAudioClassification,
}
"""Kinds of tasks, and their heads on a model of several modalities."""


@dataclass
class Start:
    """What heads are built on.

    name: the checkpoint.
    processors: what makes inputs.
    model: of several modalities; ``None`` = every head is of the checkpoint's own architecture.
    """

    name: str
    processors: InputProcessors
    model: LongMultimodalModel | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of texts."""
        tokenizer: PreTrainedTokenizerBase = self.processors.tokenizer
        return tokenizer

    def head(self, kind: str, **fields: Any) -> PreTrainedModel:
        """A head for tasks of a kind; ``fields`` are of its config.

        Raises:
            CheckpointError: the checkpoint cannot be loaded.
        """
        if self.model is None:
            return load_head(LOADERS[kind], self.name, self.tokenizer, **fields)
        return head_on(HEADS[kind], self.model, **fields)

    def reads_text(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model that reads the texts of a head: the backbone, or the head itself."""
        return model if self.model is None else self.model.text_model

    def check_longest(self, hearing: Hearing, row: Any) -> None:
        """Refuse a recording of more tokens than the backbone reads, before the training.

        Raises:
            AudioError: with the length that the backbone needs.
        """
        assert self.model is not None
        frames = hearing.length(hearing.samples(row))
        tokens, longest = self.model.config.sound.tokens(frames), self.model.longest
        if longest is not None and tokens > longest:
            raise AudioError(
                f"{row['name']} is {tokens:,} tokens of frames, but the backbone reads {longest:,}; leave it out, or convert the backbone "
                f"with --max-length {tokens}"
            )


def load_multimodal_start(name: str, kinds: Collection[str], images: ImageInput | None, mel_bins: int, subsampling: int) -> Start:
    """A start for tasks of these kinds.

    Args:
        name: a checkpoint of texts, or one of several modalities.
        images: of a new embedder; ``None`` = none.
        mel_bins: of a new embedder of recordings; 0 = none.
        subsampling: see :class:`AudioInput`.

    Raises:
        CheckpointError: it cannot be loaded, or has no head for words.
        OptionError: a task is of a modality without an embedder, or a new embedder is of one without a task, or there already.
        BackendError, GridError: the checkpoint is no such backbone, or too short for the pictures.
    """
    for kind, option, wanted in (("images", "image_size", images is not None), ("audio", "mel_bins", mel_bins > 0)):
        if wanted and kind not in kinds:
            raise OptionError(f"{option} is for tasks of kind {kind}; add --tasks NAME={kind}:DATA, or leave it out")
    config, tokenizer = load_start(name, "classes of words or documents", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    processors = InputProcessors(tokenizer)
    is_multimodal = isinstance(config, LongMultimodalConfig)
    if not is_multimodal and not {"images", "audio"} & set(kinds):
        return Start(name, processors)
    present = {"images": is_multimodal and config.image is not None, "audio": is_multimodal and config.audio is not None}
    advice = {"images": ("pictures", "--image_size 224 224 --patch_size 16"), "audio": ("recordings", "--mel_bins 80")}
    new = {"images": images is not None, "audio": mel_bins > 0}
    for kind, (words, options) in advice.items():
        if kind in kinds and not present[kind] and not new[kind]:
            raise OptionError(f"a task of kind {kind} reads {words}, and {name!r} has no embedder of {words}; add {options}")
        if present[kind] and new[kind]:
            raise OptionError(f"{name!r} has an embedder of {words} already; leave {options.split()[0].removeprefix('--')} out")
    image_processor = load_part(AutoImageProcessor, name) if present["images"] else None
    extractor = load_part(AutoFeatureExtractor, name) if present["audio"] else None
    sound = None
    if images is not None:
        image_processor = new_image_processor(images.size)
    if mel_bins:
        extractor = new_feature_extractor(mel_bins)
        sound = AudioInput(extractor.feature_size, subsampling)
    if is_multimodal:
        model = load_model(LongMultimodalModel, name, elsewhere=("heads.", "classifier.")).with_embedders(images=images, sound=sound)
    else:
        backbone = load_model(AutoModel, name, **without_pooler(config))
        model = LongMultimodalModel.of(backbone, images=images, sound=sound)
    return Start(name, InputProcessors(tokenizer, image_processor, extractor), model)
