"""The model that is compressed, and the text on which its loss and time are measured before and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import hf_longattn

from ..conversion.load import quiet_libraries, without_random_pooler
from ..conversion.running import outputs
from ..conversion.source import Source, refuse_quantised
from ..conversion.tokenizer import load_tokenizer, token_ids
from ..data.batching import masked_tokens
from ..data.tokenization import IGNORED, between, special_ids
from ..errors import CheckpointError, InputError, OptionError
from ..evaluation.summaries import mean_and_error
from ..evaluation.token_loss import verification_text
from ..files import named_class
from ..loading import load_weights
from ..modeling.family.definition import CAUSAL_LANGUAGE_MODELS, longest_input
from ..modeling.generic import check_class, loading_class

SHORT_LENGTH, LONG_LENGTH = 512, 4096
"""Lengths in tokens at which the loss is measured. If the model or the text is shorter, they are lower."""
MIN_TOKENS = 16
"""Minimum number of tokens of a text on which a loss is measured. Untuned."""
WITHOUT_TOKENIZER = SimpleNamespace(mask_token_id=0, all_special_ids=[])
"""Used in place of a tokenizer that is missing or has no mask token. Token 0 is the mask."""


@dataclass(frozen=True)
class CompressionConfig:
    """Settings of a compression.

    Attributes:
        method: a name in :data:`.compress.METHODS`.
        share: fraction of the heads to prune.
        text: a UTF-8 file with the text for the measurements; ``None`` = a built-in English text.
        length: number of tokens of long inputs; ``None`` = 4,096, or fewer if the model or the text is shorter.
        documents: number of excerpts of the text on which importance and losses are measured.
        seed: seed for the choice of masked tokens, and for random token ids if there is no tokenizer.
    """

    method: str
    share: float = 0.25
    text: str | Path | None = None
    length: int | None = None
    documents: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise OptionError(
                f"The share to prune is {self.share}, but must be above 0 and below 1, for example --share 0.25."
            )
        for name, least, most in (("documents", 1, 1000), ("length", MIN_TOKENS, 2**24), ("seed", 0, 2**31 - 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise OptionError(f"--{name.replace('_', '-')} is {value}, but must be from {least} to {most:,}.")


@dataclass
class CompressionInput:
    """A model in fp32, a text for the measurements, and the settings.

    Attributes:
        folder: folder of the source.
        ids: token ids of the text, ``(1, N)``.
        tokenizer: the model's tokenizer; ``None`` = it has none.
        config: the settings.
        text: description of the text.
        dtype: dtype of the weights in the files of the source, and in the files of a pruned model.
    """

    folder: Path
    model: Any
    ids: Tensor
    tokenizer: Any
    config: CompressionConfig
    text: str = ""
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_source(cls, source: Source, config: CompressionConfig) -> CompressionInput:
        """Load the model of an opened source, and the text.

        Raises:
            CheckpointError: the source cannot be loaded, or is quantised already.
            OptionError: the model does not read texts.
            InputError: the text is too short.
        """
        refuse_quantised(source)
        check_class(source.name, source.folder, source.config)

        # Model
        class_name = named_class(source.config, "")
        library = transformers
        if class_name.startswith("Long") and hasattr(hf_longattn, class_name):
            library = hf_longattn
        model_class: Any = getattr(library, class_name, None) if class_name else None
        if not hasattr(model_class, "from_pretrained"):
            raise CheckpointError(
                f"The config.json of {source.name!r} names {class_name!r}, which is not a class of hf_longattn or "
                "transformers; set architectures to the class that saved it."
            )
        model = _load(model_class, source.folder, dtype=torch.float32)
        if model.main_input_name != "input_ids":
            raise OptionError(
                f"{class_name} reads {model.main_input_name}, and a compression is measured on text; load the model "
                "with dtype=torch.bfloat16, or call hf_longattn.optimize_for_inference(model, 'int8')."
            )

        # Text
        tokenizer = load_tokenizer(source.folder, model.config)
        text, origin = verification_text(config.text)
        if tokenizer is None:  # random ids from 5 on, because special tokens usually have the lowest ids
            generator = torch.Generator().manual_seed(config.seed)
            ids = torch.randint(5, model.config.vocab_size, (1, LONG_LENGTH * 4), generator=generator)
            origin = "seeded token ids, since the model has no tokenizer"
        else:
            ids = torch.tensor([token_ids(tokenizer, text)])
        if ids.shape[1] < MIN_TOKENS:
            raise InputError(
                f"The text {origin!r} has {ids.shape[1]} tokens, but at least {MIN_TOKENS} are needed; give a longer "
                "one with --text."
            )
        dtype = getattr(torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), torch.float32)
        return cls(source.folder, model, ids, tokenizer, config, origin, dtype)

    def load(self, folder: Path, **arguments: Any) -> Any:
        """Load a model of the source's class from another folder."""
        return _load(loading_class(self.model), folder, **arguments)

    def outputs(self, model: Any, length: int) -> dict[str, Tensor]:
        """All outputs of a model in fp32 for the first ``length`` tokens of the text.

        The decoder of an encoder-decoder reads the first 16 of them.
        """
        values = outputs(model, self.ids[:, :length], decoder_tokens=16)
        return {name: value.float() for name, value in values.items()}

    def long_length(self) -> int:
        """Number of tokens of the long inputs.

        Raises:
            InputError: ``config.length`` exceeds the maximum of the model, or the length of the text.
        """
        longest = longest_input(self.model.config) or LONG_LENGTH
        tokens, length = self.ids.shape[1], self.config.length
        if length is None:
            return min(LONG_LENGTH, longest, tokens)
        if length > longest:
            raise InputError(f"--length is {length}, but the model takes {longest} tokens; give at most {longest}.")
        if length > tokens:
            raise InputError(
                f"--length is {length}, but the text has {tokens} tokens; give a longer text with --text, or a "
                "smaller --length."
            )
        return length

    def pieces(self, length: int) -> list[Tensor]:
        """``config.documents`` evenly spaced excerpts ``(1, length)`` of the text.

        Special tokens replace the first and last tokens of an excerpt.
        """
        ids, count = self.ids[0], self.config.documents
        last = len(ids) - length
        starts = sorted({round(number * last / max(1, count - 1)) for number in range(count)})
        special = ([], []) if self.tokenizer is None else special_ids(self.tokenizer)
        return [between(ids[None, start : start + length], *special) for start in starts]

    def loss(self, model: Any, ids: Tensor) -> Tensor:
        """The mean loss of a language model on token ids ``(1, N)``, in nats per predicted token.

        A masked language model predicts 15 % of the tokens, which are masked. A causal one predicts every next token.
        """
        if type(model).__name__.endswith("ForMaskedLM"):
            tokenizer = self.tokenizer
            if getattr(tokenizer, "mask_token_id", None) is None:
                tokenizer = WITHOUT_TOKENIZER
            masked_ids, labels = masked_tokens(ids, tokenizer, self.config.seed)
            logits = model(input_ids=masked_ids).logits
            is_masked = labels != IGNORED
            return nn.functional.cross_entropy(logits[is_masked].float(), labels[is_masked])
        logits = model(input_ids=ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])

    @torch.no_grad()
    def measure(self, model: Any, folder: Path, lengths: Sequence[int]) -> dict[str, Any]:
        """Losses of a model at ``lengths``, seconds of a pass at the last length, and bytes of weights in ``folder``.

        A model that does not predict tokens has no losses. The seconds are the least of three passes.
        """
        losses = {}
        for length in lengths if predicts_tokens(model) else ():
            values = [float(self.loss(model, piece)) for piece in self.pieces(length)]
            loss, error = mean_and_error(values)
            losses[str(length)] = {"loss": loss, "loss_se": error, "documents": len(values)}
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            self.outputs(model, lengths[-1])
            seconds.append(time.perf_counter() - started)
        return {
            "loss": losses,
            "seconds": min(seconds),
            "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        }


@quiet_libraries()
def _load(model_class: Any, folder: Path, **arguments: Any) -> Any:
    """Load a model from safetensors files. A pooler that is not in the files is removed."""
    model, info = load_weights(model_class, folder, local_files_only=True, output_loading_info=True, **arguments)
    without_random_pooler(model, info["missing_keys"])
    return model.eval()


def predicts_tokens(model: Any) -> bool:
    """Whether the model is a masked or causal language model, and not an encoder-decoder."""
    return (
        type(model).__name__.endswith(("ForMaskedLM", *CAUSAL_LANGUAGE_MODELS)) and not model.config.is_encoder_decoder
    )
