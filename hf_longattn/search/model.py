"""The model of a search, which can run any attention, and its inputs: pieces of a text, images or recordings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.adopt import ADOPTIONS
from ..conversion.convert import modality_of
from ..conversion.load import load_as_result
from ..conversion.plan import ConversionPlan
from ..conversion.settings import ConversionConfig
from ..conversion.source import Source, open_source
from ..conversion.tokenizer import load_tokenizer
from ..errors import CheckpointError, InputError
from ..evaluation.token_loss import verification_text
from ..files import is_generic, is_long
from ..inspect.texts import TextIds
from ..modeling.attach.attachment import attach_mechanisms
from ..modeling.family.sliding_window import base_attention, own_windows
from ..modeling.generic import family_in


class SearchedModel:
    """A checkpoint in memory that can run any attention in its layers, like the result of a conversion.

    Args:
        source: a folder, a Hub repository id, or an opened checkpoint.
        config: settings of the conversion, such as its length and positions.
        device: the device on which the model runs.

    Raises:
        CheckpointError: the checkpoint has several towers, or no Long class.

    Attributes:
        original: the plan of a conversion with full attention.
        length: maximum length of the conversion's result, in tokens.
        layers: number of layers.
        base_attention: attention of the layers before the conversion: full attention, sliding windows, or the
            mechanisms of a long model of transformers.
        named: as in :class:`.design.Design`.
    """

    def __init__(self, source: str | Source, config: ConversionConfig, device: torch.device) -> None:
        if isinstance(source, str):
            source = open_source(source, revision=config.revision, token=config.token)
        self.source = source
        check_one_stack(source)
        self.conversion, self.device = config, device
        plan = self.original = self.planned(None)
        self.tokenizer = load_tokenizer(self.source.folder)
        self.length, self.layers = plan.new_length, plan.shape.layers
        windows = own_windows(plan.architecture.source_config)
        self.named = frozenset(layer for layer, width in enumerate(windows) if width is not None)
        self.base_attention: LongAttentionConfig = plan.architecture.original_attention or base_attention(windows)
        self._model: Any = None
        self._key: object = None

    def planned(self, attention: LongAttentionConfig | None, *, short: bool = False) -> ConversionPlan:
        """The plan of a conversion.

        Args:
            attention: the attention of all layers; ``None`` for full attention.
            short: keep the checkpoint's own length and positions.
        """
        changes: dict[str, Any] = {"long_attention": attention or LongAttentionConfig("full")}
        if short:
            changes |= {"max_length": None, "positions": "auto"}
        return plan_conversion(self.source, config=dataclasses.replace(self.conversion, **changes))

    def run_with(self, attention: LongAttentionConfig, *, short: bool = False) -> Any:
        """The model in fp32 with this attention, in evaluation mode.

        The next call may change the returned model, because models with the same positions share their weights.

        Args:
            attention: the attention of all layers.
            short: keep the length and positions with which the checkpoint was trained.
        Raises:
            CheckpointError: the checkpoint cannot be loaded.
        """
        plan = self.planned(attention, short=short)
        text = plan.config.get_text_config()
        # the model is loaded again if its positions differ from those of the model in memory
        key = (short, repr(getattr(text, "rope_parameters", None)), getattr(plan.config, "position_extension", None))
        if key != self._key:
            self._model = None
            model, _ = load_as_result(self.source, plan.architecture, plan.config)
            if hasattr(model.config, "use_cache"):
                model.config.use_cache = False
            self._model, self._key = model.to(self.device), key
        with torch.random.fork_rng():
            torch.manual_seed(0)
            attach_mechanisms(self._model, plan.attention, getattr(plan.config, "decoder_attention", None))
        return self._model.eval()


def check_one_stack(source: Source) -> None:
    """Raise :class:`CheckpointError` for a checkpoint with several towers, or without a Long class."""
    model_type = str(source.config.get("model_type"))
    family = family_in(source.config)
    towers = "" if family is None else " and ".join(family.towers)
    if family is not None and towers:
        name, tower = next(iter(family.towers.items()))
        class_name = f"transformers.{tower.base_model_name}"
        if is_long(source.config):
            class_name = f"hf_longattn.{tower.model_classes[tower.base_model_name]}"
        raise CheckpointError(
            f"A search is of one stack, and {source.name!r} has the towers {towers}; save one, for example "
            f"{class_name}.from_pretrained({source.name!r}).save_pretrained('{name}-tower'), and search that folder."
        )
    known = family is not None or model_type in ADOPTIONS or "long_attention" in source.config
    if is_generic(source.config) or not known:
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, which has no Long class, and a search needs one; `longattn "
            "inspect MODEL INPUT` says what mechanisms would keep of its attention."
        )


class SearchText(TextIds):
    """The token ids of a text, of which the model reads one piece at a time."""

    def pieces(self, length: int, count: int) -> list[Tensor]:
        """At most ``count`` consecutive pieces of the text, ``(length,)`` each, with special tokens.

        Raises:
            InputError: the text is shorter than a piece.
        """
        body = length - len(self.prefix) - len(self.suffix)  # tokens without the special tokens
        starts = range(0, len(self.ids) - body + 1, max(body, 1))
        if body < 1 or not starts:
            raise InputError(
                f"The {self.name} has {self.tokens:,} tokens, but the search reads {length:,} at once; give a "
                "longer text."
            )
        return [torch.tensor(self.prefix + self.ids[start : start + body] + self.suffix) for start in starts[:count]]


def read_inputs(text: str | Path | Tensor | None, model: SearchedModel, pieces: int) -> SearchText | Any:
    """The inputs of a search.

    Args:
        text: a text, a file or folder (``Path``), or token ids. ``None`` is for built-in inputs.
        pieces: maximum number of inputs. A long text is tokenised only as far as they reach.

    Returns:
        The token ids of a text, or the user's images or recordings.

    Raises:
        DataError, InputError, CheckpointError, OptionError: see :class:`~hf_longattn.conversion.sized.UserFiles`.
    """
    plan = model.original
    if plan.inputs.new.name:
        files_class, architecture = modality_of(plan.architecture).files, plan.architecture
        spec, config = architecture.family.spec, architecture.source_config
        return files_class(spec, config, plan.source.folder, text, count=pieces, model=plan.source.name)
    vocabulary = getattr(plan.config.get_text_config(), "vocab_size", 2)
    name = ""
    if text is None:
        text, name = verification_text(None)
    searched = SearchText(text, model.tokenizer, pieces * model.length, vocabulary)
    searched.name = name or searched.name
    return searched
