"""Attention transfer of candidates with parameters before they are judged: stage 1 of `longattn train linearise`.

There every layer's mechanism learns from the checkpoint's own queries, keys and values, so layers are trained independently of one another,
and designs can take each layer from the run of its candidate.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from ..errors import OptionError
from ..inspect import Candidate
from ..loading import load_model
from ..mechanisms.common.registry import prototype
from ..staging import staged_file
from .model import Weights, layer_weights
from .objectives import Transferred


def transfer_attention(
    model: str, text: str | Path | Tensor, candidates: Sequence[Candidate], steps: int, length: int, folder: Path, seed: int,
    progress: Callable[[str], None],
) -> Transferred:  # fmt: skip
    """Train the mechanisms of every candidate that learns, once; later calls read what was written.

    Args:
        model: the checkpoint.
        text: a file.
        steps: of the optimiser, with one input of ``length`` tokens each.
        folder: for the trained parameters.
    Raises:
        OptionError: the text is not a file.
        MissingExtraError: the extra ``train`` is not installed.
    """
    transferred: dict[str, dict[int, Weights]] = {}
    for candidate in candidates:
        if not prototype(candidate.mechanism, candidate.options).traits.trains:
            continue
        name = "".join(letter if letter.isalnum() or letter in "-_=" else "-" for letter in str(candidate))
        file = folder / f"{name}.safetensors"
        if not file.is_file():
            progress(f"attention transfer of {candidate}")
            if not isinstance(text, Path):
                raise OptionError("Attention transfer reads its text from a file; give a Path, or transfer_steps=0.")
            _train(model, text, candidate, steps, length, file, seed)
        layers: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(file).items():
            layer, _, rest = name.partition(".")
            layers.setdefault(int(layer), {})[rest] = value
        transferred[str(candidate)] = dict(layers)
    return transferred


def _train(model: str, text: Path, candidate: Candidate, steps: int, length: int, file: Path, seed: int) -> None:
    from ..training import LineariseModelArguments, LineariseTrainingArguments, TextDataArguments, linearise_attention

    work = file.with_suffix(".run")
    shutil.rmtree(work, ignore_errors=True)
    options = [f"{name}={value}" for name, value in candidate.options.items()]
    linearise_attention(
        LineariseModelArguments(model=model, mechanism=candidate.mechanism, option=options),
        TextDataArguments(text=[str(text)], validation=str(text), max_length=length),
        LineariseTrainingArguments(
            output_dir=str(work), stage="1", transfer_steps=steps, held_out_inputs=1, per_device_train_batch_size=1, save_strategy="no",
            report_to="none", seed=seed, disable_tqdm=True,
        ),
    )  # fmt: skip
    trained = load_model(AutoModel, work)
    values = {f"{layer}.{name}": value.contiguous() for layer, weights in layer_weights(trained).items() for name, value in weights.items()}
    with staged_file(file) as stage:
        save_file(values, stage)
    shutil.rmtree(work, ignore_errors=True)
