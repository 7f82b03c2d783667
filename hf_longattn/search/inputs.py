"""Images and recordings that a model reads at the size for which it is converted, or at another one, as its processor makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conversion.plan import ConversionPlan
from ..inputs.common.base import InputSize
from ..inputs.common.running import with_decoder_input


class SearchInputs:
    """Inputs of a model that are not texts.

    Args:
        given: a file or a folder of them; ``None`` for scikit-learn's photographs.
        plan: of a conversion of the model.
        count: most inputs to read.

    Raises:
        DataError, AudioError, CheckpointError, OptionError: see :class:`~hf_longattn.inputs.common.user_files.UserInputs`.
    """

    has_loss = False

    def __init__(self, given: object, plan: ConversionPlan, count: int) -> None:
        kind: Any = plan.kind
        self.config = plan.architecture.source_config
        self.kind, self.user = kind, kind.user_inputs(kind.rule, self.config, plan.source.folder, plan.source.name, given, count)
        self.name, self.unit, self.too_few = self.user.name, self.user.unit, self.user.too_few
        self._pieces: dict[InputSize, list[dict[str, Tensor]]] = {}

    def pieces(self, size: Any, count: int) -> list[dict[str, Tensor]]:
        """Up to ``count`` inputs of this size, each as arguments of ``forward`` for one of them.

        Raises:
            LengthError, DataError: no recording is so long, or a video has too few frames.
            GridError: the processor makes inputs of another size.
        """
        if size not in self._pieces:
            self._pieces[size] = [self.kind.arguments(self.config, values) for values in self.user.values(size.value)]
        return self._pieces[size][:count]

    def predicted(self, size: Any, count: int, *, causal: bool) -> list[tuple[dict[str, Tensor], None]]:
        """The inputs; everything that a head says of one is compared."""
        return [(piece, None) for piece in self.pieces(size, count)]

    def arguments(self, piece: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """What the model is called with."""
        return {name: value.to(device) for name, value in piece.items()}

    def completed(self, model: Any, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        return with_decoder_input(model, arguments)


def digest(folder: Path) -> str:
    """Names and sizes of the images or recordings of a folder, by which a search that resumes knows them."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.name.startswith(".")]
    return "\n".join(f"{file.name} {file.stat().st_size}" for file in files)
