"""A text backbone that also reads images and recordings, with embedders of patches and frames in front of its layers.

A convolution embeds the patches of an image, and learned embeddings of rows and columns encode their positions.
Convolutions along time shorten a spectrogram. The tokens of an image or recording enter the backbone as
``inputs_embeds``, after a learned first token, and the backbone adds its own positions. For its attention, patches are
therefore a one-dimensional sequence, row by row.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from ..engines.token_grid import Grid
from ..errors import BackendError, InputError, OptionError
from ..loading import new_model
from .attach.attention_sites import layer_mechanisms, with_members
from .attach.global_mask import takes_globals
from .family.definition import longest_input
from .family.long_config import attention_implementation
from .family.registration import auto_mapping
from .mixin import HubMixin

TEXTS, IMAGES, SOUND = "input_ids", "pixel_values", "input_features"
"""The arguments of ``forward`` for a text, an image and a recording."""
CLASS_DROPOUT = 0.1
"""Dropout before a head, if the backbone's config has none."""


@dataclass(frozen=True)
class ImageInput:
    """The images that an embedder reads.

    size: height and width in pixels.
    patch: side of a patch in pixels.
    channels: number of channels of a pixel.

    Raises:
        InputError: the size is not a multiple of the patch.
    """

    size: tuple[int, int]
    patch: int
    channels: int = 3

    def __post_init__(self) -> None:
        """Check that patches fill the image. A list as ``size``, as in a config.json, becomes a tuple."""
        object.__setattr__(self, "size", tuple(self.size))
        if (
            len(self.size) != 2
            or min(*self.size, self.patch, self.channels) < 1
            or any(side % self.patch for side in self.size)
        ):
            raise InputError(
                f"Images of {' × '.join(map(str, self.size))} pixels are not filled by patches of {self.patch} × "
                f"{self.patch}; give a height and a width that are multiples of the patch, for example 224 224 and 16."
            )

    @property
    def grid(self) -> Grid:
        return Grid((self.size[0] // self.patch, self.size[1] // self.patch))


@dataclass(frozen=True)
class AudioInput:
    """The spectrograms that an embedder reads.

    features: number of features per frame, as the feature extractor makes them.
    subsampling: number of frames per token, a power of two.

    Raises:
        OptionError: ``subsampling`` is another number.
    """

    features: int
    subsampling: int = 8

    def __post_init__(self) -> None:
        if self.subsampling < 1 or self.subsampling & (self.subsampling - 1):
            raise OptionError(f"The frames of a token must be a power of two, such as 8, not {self.subsampling}.")


class LongMultimodalConfig(PreTrainedConfig):
    """The config of :class:`LongMultimodalModel`.

    text_config: the config of the backbone. It has the width, the length and the mechanisms of the model.
    image: the fields of an :class:`ImageInput`; ``None`` = no images.
    audio: the fields of an :class:`AudioInput`; ``None`` = no recordings.
    pad_token_id: padding id of the backbone.
    """

    model_type = "long_multimodal"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, Mapping):
            self.text_config = AutoConfig.for_model(**self.text_config)
        if self.pad_token_id is None and self.text_config is not None:
            self.pad_token_id = getattr(self.text_config, "pad_token_id", None)
        super().__post_init__(**kwargs)

    @property
    def max_position_embeddings(self) -> int | None:
        """Maximum number of tokens of an input; ``None`` if unlimited."""
        return None if self.text_config is None else longest_input(self.text_config)

    @property
    def embedded(self) -> dict[str, Any]:
        """The inputs for which the model has embedders: an :class:`ImageInput` as "images", an :class:`AudioInput` as
        "sound"."""
        inputs: dict[str, Any] = {}
        if self.image is not None:
            inputs["images"] = ImageInput(**self.image)
        if self.audio is not None:
            inputs["sound"] = AudioInput(**self.audio)
        return inputs

    @property
    def long_image_size(self) -> tuple[int, int] | None:
        """Height and width of the images that the model reads, under the name of this field in Long configs of
        images."""
        return getattr(self.embedded.get("images"), "size", None)


@dataclass
class LongMultimodalOutput(BaseModelOutput):
    """The outputs of :class:`LongMultimodalModel`: the backbone's, and the mask of its tokens.

    token_mask: ``(B, N)``, 1 for real tokens; ``None`` if all are real.
    """

    token_mask: Tensor | None = None


class Embedder(nn.Module):
    """Prepends a learned first token to images or recordings, and adds a learned embedding to all their tokens.

    width: width of the backbone's embeddings.
    """

    trained_beside_updates = True
    """Whether a training with LoRA also trains this module completely, because it has no pretrained weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(2, width)  # the first token, and the embedding added to all

    def with_first(self, tokens: Tensor) -> Tensor:
        """Prepend the learned first token: ``(B, N, D)`` -> ``(B, 1 + N, D)``. Adds the learned embedding to all
        tokens."""
        first = self.kind.weight[:1].expand(len(tokens), 1, -1)
        return torch.cat([first, tokens], 1) + self.kind.weight[1]


class PatchEmbedder(Embedder):
    """Images as tokens: patches, with learned embeddings of rows and columns."""

    def __init__(self, images: ImageInput, width: int) -> None:
        super().__init__(width)
        self.images = images
        self.patches = nn.Conv2d(images.channels, width, images.patch, images.patch)
        self.rows = nn.Embedding(images.grid.sizes[0], width)
        self.columns = nn.Embedding(images.grid.sizes[1], width)

    def forward(self, pixels: Tensor) -> Tensor:
        """``pixels (B, C, H, W)`` as ``(B, 1 + patches, D)``. Raises :class:`InputError` if the images have another
        size."""
        expected = (self.images.channels, *self.images.size)
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != expected:
            raise InputError(
                f"The images are {' × '.join(map(str, pixels.shape[1:]))}, but this model reads "
                f"{' × '.join(map(str, expected))} "
                "(colours, height, width); resize them with the model's image processor."
            )
        cells = self.patches(pixels.to(self.patches.weight.dtype)).permute(0, 2, 3, 1)
        return self.with_first((cells + self.rows.weight[:, None] + self.columns.weight).flatten(1, 2))


class FrameEmbedder(Embedder):
    """Spectrograms as tokens. Each frame is normalised over its features. Then each convolution along time halves the
    number of frames, until ``sound.subsampling`` frames have become one token."""

    def __init__(self, sound: AudioInput, width: int) -> None:
        super().__init__(width)
        self.sound = sound
        self.norm = nn.LayerNorm(sound.features)
        # strides: a power of two is a product of twos, and 1 needs one convolution as well
        self.steps = [2] * (sound.subsampling.bit_length() - 1) or [1]
        inputs = [sound.features, *[width] * (len(self.steps) - 1)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(size, width, 3, step, 1) for size, step in zip(inputs, self.steps, strict=True)
        )

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens ``(B, 1 + N, D)`` of a spectrogram, and their mask ``(B, 1 + N)``, or ``None`` if all are real.

        Padding is set to zero before every convolution, so that it changes no token.

        Args:
            features: ``(B, T, F)``.
            mask: ``(B, T)``, 1 for real frames; ``None`` if all are real.

        Raises:
            InputError: frames have another number of features.
        """
        if features.dim() != 3 or features.shape[2] != self.sound.features:
            raise InputError(
                f"The audio features have the shape {tuple(features.shape)}, but this model reads (batch, frames, "
                f"{self.sound.features}); make them with the model's feature extractor."
            )
        frames = self.norm(features.to(self.kind.weight.dtype))
        for convolution, step in zip(self.convolutions, self.steps, strict=True):
            if mask is not None:
                frames = frames * mask[..., None].to(frames.dtype)
                mask = mask[:, ::step]
            frames = F.gelu(convolution(frames.transpose(1, 2))).transpose(1, 2)
        if mask is not None:
            mask = F.pad(mask, (1, 0), value=1)
        return self.with_first(frames), mask


class LongMultimodalPreTrainedModel(HubMixin, PreTrainedModel):
    """Base class of multimodal models."""

    config_class = LongMultimodalConfig
    base_model_prefix = "multimodal"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True


class LongMultimodalModel(LongMultimodalPreTrainedModel):
    """A text backbone with embedders of images and recordings.

        backbone = LongBertModel.from_pretrained("bert-4096")
        model = LongMultimodalModel.of(backbone, images=ImageInput((224, 224), patch=16))
        model(input_ids=…), model(pixel_values=…)

    Args:
        text_model: the backbone; by default a new one from the config.

    Raises:
        BackendError: the backbone reads no embeddings, or has mechanisms on a grid.
        InputError: images have more patches than the backbone has positions.
    """

    def __init__(self, config: LongMultimodalConfig, text_model: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if text_model is None:
            text_model = new_model(AutoModel, config.text_config, **without_pooler(config.text_config))
        self.text_model = text_model
        check_backbone(self.text_model)
        width = self.text_model.get_input_embeddings().weight.shape[1]
        images, sound = (config.embedded.get(kind) for kind in ("images", "sound"))
        self.image_embedder = None if images is None else PatchEmbedder(images, width)
        self.audio_embedder = None if sound is None else FrameEmbedder(sound, width)
        self.longest = longest_input(self.text_model.config)
        if images is not None and self.longest is not None and images.grid.cells + 1 > self.longest:
            raise InputError(
                f"Images of {' × '.join(map(str, images.size))} pixels in patches of {images.patch} are "
                f"{images.grid.cells + 1:,} tokens, but the backbone reads {self.longest:,}; give larger patches, or "
                f"convert it with --max-length {images.grid.cells + 1}."
            )
        self.post_init()

    @classmethod
    def of(
        cls, text_model: PreTrainedModel, *, images: ImageInput | None = None, sound: AudioInput | None = None
    ) -> LongMultimodalModel:
        """A model on a backbone, with new embedders."""
        inputs = {"image": images, "audio": sound}
        fields = {name: dataclasses.asdict(kind) for name, kind in inputs.items() if kind is not None}
        # the new config sets its attention implementation in the backbone's config, too: restore the backbone's
        implementation = attention_implementation(text_model.config)
        config = LongMultimodalConfig(text_config=text_model.config, architectures=[cls.__name__], **fields)
        text_model.set_attn_implementation(implementation)
        return cls(config, text_model)

    def with_embedders(self, **inputs: Any) -> LongMultimodalModel:
        """A model on the same backbone, with this model's embedders and new ones for further ``inputs``, which are
        arguments of :meth:`of`."""
        new = type(self).of(self.text_model, **self.config.embedded, **inputs)
        new.image_embedder = self.image_embedder or new.image_embedder
        new.audio_embedder = self.audio_embedder or new.audio_embedder
        return new

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        **kwargs: Any,
    ) -> LongMultimodalOutput:
        """The hidden states of texts, of images or of recordings.

        Args:
            input_ids: ``(B, N)``.
            attention_mask: ``(B, N)`` of tokens, or ``(B, T)`` of frames; 0 for padding.
            pixel_values: ``(B, C, H, W)``.
            input_features: ``(B, T, F)``.
            **kwargs: arguments of the backbone.

        Raises:
            OptionError: there is no input, or there are inputs of several kinds.
            BackendError: the model has no embedder for this input.
            InputError: the input has another shape, or more tokens than the backbone reads.
        """
        inputs = {TEXTS: input_ids, IMAGES: pixel_values, SOUND: input_features}
        names = [name for name, value in inputs.items() if value is not None]
        if len(names) != 1:
            raise OptionError(
                f"A batch is of one kind; give one of {', '.join(inputs)}, not {' and '.join(names) or 'none'}."
            )
        if input_ids is not None:
            arguments = {TEXTS: input_ids}
        else:
            embeddings, attention_mask = self.embedded(pixel_values, input_features, attention_mask)
            arguments = {"inputs_embeds": embeddings}
            if takes_globals(self.text_model):  # the learned first token is global
                first = torch.arange(embeddings.shape[1], device=embeddings.device) == 0
                arguments["global_attention_mask"] = first.long().expand(embeddings.shape[:2])
        outputs = self.text_model(**arguments, attention_mask=attention_mask, **{**kwargs, "return_dict": True})
        return LongMultimodalOutput(
            outputs.last_hidden_state, outputs.get("hidden_states"), outputs.get("attentions"), attention_mask
        )

    def embedded(
        self, pixels: Tensor | None, features: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The embeddings ``(B, N, D)`` of images or recordings, and the mask ``(B, N)`` of their tokens, or ``None``
        without padding.

        Raises:
            BackendError: the model has no embedder for this input.
            InputError: the recordings have more tokens than the backbone reads.
        """
        kind = "audio" if pixels is None else "images"
        embedder = self.audio_embedder if pixels is None else self.image_embedder
        if embedder is None:
            raise BackendError(
                f"This model has no embedder of {kind}; train one with longattn train multitask and a task of kind "
                f"{kind}."
            )
        if pixels is not None:
            return embedder(pixels), None
        assert features is not None
        embeddings, mask = embedder(features, mask)
        if self.longest is not None and embeddings.shape[1] > self.longest:
            raise InputError(
                f"Audio of {features.shape[1]:,} frames is {embeddings.shape[1]:,} tokens, but the backbone reads "
                f"{self.longest:,}; cut it, or convert the backbone with --max-length {embeddings.shape[1]}."
            )
        return embeddings, mask


class LongMultimodalHead(LongMultimodalPreTrainedModel):
    """Base class of heads: dropout and a linear layer.

    Args:
        multimodal: the model below the head; by default a new one from the config.
    """

    output_class: ClassVar[Any]

    def __init__(self, config: LongMultimodalConfig, multimodal: LongMultimodalModel | None = None) -> None:
        super().__init__(config)
        self.multimodal = LongMultimodalModel(config) if multimodal is None else multimodal
        text_config = self.multimodal.text_model.config
        self.dropout = nn.Dropout(getattr(text_config, "hidden_dropout_prob", CLASS_DROPOUT))
        self.classifier = nn.Linear(text_config.hidden_size, config.num_labels)
        self.post_init()

    def states(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """The hidden states that the head classifies: here those of all tokens, ``hidden (B, N, D)``.

        mask: ``(B, N)``, 1 for real tokens; ``None`` if all are real.
        """
        return hidden

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> Any:
        """The scores of all classes for each input, ``(B, classes)``, or for each token, ``(B, N, classes)``.

        Args:
            labels: ``(B,)`` or ``(B, N)``, the right classes, -100 for none. With them, the outputs have a loss.
            **inputs: arguments of :class:`LongMultimodalModel`.
        """
        outputs = self.multimodal(**inputs)
        logits = self.classifier(self.dropout(self.states(outputs.last_hidden_state, outputs.token_mask)))
        loss = None if labels is None else F.cross_entropy(logits.float().flatten(0, -2), labels.flatten())
        return self.output_class(loss, logits, outputs.hidden_states, outputs.attentions)


class _ForWholeInput(LongMultimodalHead):
    """Base class of heads that classify an input as a whole, from the mean of its tokens' states."""

    output_class = SequenceClassifierOutput

    def states(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return hidden.mean(1)
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return mean.to(hidden.dtype)


class LongMultimodalForSequenceClassification(_ForWholeInput):
    """Classifies texts."""


class LongMultimodalForImageClassification(_ForWholeInput):
    """Classifies images."""

    main_input_name = IMAGES


class LongMultimodalForAudioClassification(_ForWholeInput):
    """Classifies recordings."""

    main_input_name = SOUND


class LongMultimodalForTokenClassification(LongMultimodalHead):
    """Classifies the tokens of texts."""

    output_class = TokenClassifierOutput


class LongMultimodalForQuestionAnswering(LongMultimodalHead):
    """Finds answers as spans of a text. Its config has two labels, start and end."""

    def forward(  # type: ignore[override]
        self, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **inputs: Any
    ) -> QuestionAnsweringModelOutput:
        """The scores of every token as the start and as the end of the answer, ``(B, N)`` each.

        Args:
            start_positions: ``(B,)``, the indices of the answers' first tokens.
            end_positions: ``(B,)``, the indices of their last tokens. With both, the outputs have a loss.
            **inputs: arguments of :class:`LongMultimodalModel`.
        """
        outputs = self.multimodal(**inputs)
        starts, ends = self.classifier(self.dropout(outputs.last_hidden_state)).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = F.cross_entropy(starts.float(), start_positions)
            loss = (start_loss + F.cross_entropy(ends.float(), end_positions)) / 2
        return QuestionAnsweringModelOutput(loss, starts, ends, outputs.hidden_states, outputs.attentions)


def without_pooler(config: PreTrainedConfig) -> dict[str, Any]:
    """The keyword arguments with which ``AutoModel`` builds a base model without a pooler, since heads use the mean of
    all tokens. Empty if the model class has no such argument."""
    known = auto_mapping(AutoModel)
    if known is None or type(config) not in known:
        return {}
    base = known[type(config)]
    if isinstance(base, tuple):
        base = base[0]
    takes_pooler = "add_pooling_layer" in inspect.signature(base.__init__).parameters
    return {"add_pooling_layer": False} if takes_pooler else {}


def check_backbone(model: PreTrainedModel) -> None:
    """Refuse a backbone that cannot read patches and frames as a one-dimensional sequence of embeddings.

    Raises:
        BackendError: it does not read texts, has a decoder beside the encoder, or has mechanisms on a grid.
    """
    name = type(model).__name__
    embeddings = model.get_input_embeddings()
    takes_embeddings = "inputs_embeds" in inspect.signature(model.forward).parameters
    if not takes_embeddings or not isinstance(embeddings, nn.Embedding) or model.config.is_encoder_decoder:
        raise BackendError(
            f"{name} is not an encoder or decoder of texts that takes inputs_embeds; take one, such as a converted "
            "BERT."
        )
    mechanisms = with_members(layer_mechanisms(model))
    on_grid = sorted(mechanism.name for mechanism in mechanisms if mechanism.capabilities.needs_grid)
    if on_grid:
        raise BackendError(
            f"The mechanism {on_grid[0]} of {name} compares places on a grid, and this backbone reads texts, patches "
            "and frames in one line; convert it with a mechanism of one dimension, such as window."
        )
