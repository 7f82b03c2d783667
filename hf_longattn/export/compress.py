"""Write a smaller checkpoint: 8 bits per weight, bf16, or without the heads that matter least.

torchao quantises with transformers' own config, so that ``from_pretrained`` loads the result if torchao is installed.
The written files are read again and compared with the model in memory. Loss at a short and a long length, time and
size are measured.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from ..conversion.folders import add_source_files, open_for_writing, versions, with_report, write_report
from ..conversion.load import quiet_libraries
from ..conversion.source import tensor_headers
from ..errors import CheckpointError, OptionError, check_extra, checkpoint_errors, nearest
from ..evaluation.summaries import plus_minus
from ..files import EMBEDDINGS, sentence_class, staged_folder
from ..hub import origin_of
from ..modeling.family.definition import WITHOUT_HEAD, longest_input, without_head
from ..modeling.inference import warn_of_overflow
from ..reports import markdown_table
from .compression_input import SHORT_LENGTH, CompressionConfig, CompressionInput
from .prune import Compressed, prune_heads

REPORT = "compression_report.json"
TOLERANCE = 1e-4
"""Maximum difference between outputs of the written files and of the expected model, relative to the largest
output."""


@dataclass(frozen=True)
class CompressionReport:
    """A finished compression.

    Attributes:
        measured: "before" and "after", each with ``loss`` (length -> nats per token, and its standard error),
            ``seconds`` of one pass at the longest length, and ``bytes`` of the weights.
        difference: largest difference of outputs, relative to the largest output, between the files read again and the
            expected model: the model that was written (quantised, bf16), or the source with the pruned heads set to
            zero.
        changed: ``tensors`` and ``bytes``: number and size of changed tensors in the files; ``all_bytes``: size of all
            tensors.
        outputs: for each output of the files read again, :func:`accuracy` in comparison with the source.
        pruned: for each layer the removed heads.
    """

    destination: Path
    config: dict[str, Any]
    measured: dict[str, dict[str, Any]]
    difference: float
    changed: dict[str, int]
    outputs: dict[str, dict[str, float]]
    pruned: dict[str, Any]
    text: str
    files: tuple[str, ...]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as in compression_report.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "destination"}

    def rows(self) -> list[tuple[str, ...]]:
        """Table rows: name of a measurement, value before, value after."""
        before, after = self.measured["before"], self.measured["after"]
        rows: list[tuple[str, ...]] = []
        for length, loss in before["loss"].items():
            values = [plus_minus(each["loss"], each["loss_se"], 3) for each in (loss, after["loss"][length])]
            rows.append((f"loss at {int(length):,} tokens, nats", *values))
        return [
            *rows,
            ("one pass, seconds", f"{before['seconds']:,.2f}", f"{after['seconds']:,.2f}"),
            ("weights, MB", f"{before['bytes'] / 1e6:,.1f}", f"{after['bytes'] / 1e6:,.1f}"),
        ]

    def changed_in_words(self) -> str:
        """Number and size of the tensors that the method changed, as text."""
        changed, total = self.changed["bytes"] / 1e6, self.changed["all_bytes"] / 1e6
        return f"{self.changed['tensors']:,} tensors, {changed:,.1f} of {total:,.1f} MB"

    def table(self) -> str:
        """The report in Markdown, for a card."""
        measured = markdown_table(("", "before", "after"), self.rows())
        return f"Changed: {self.changed_in_words()}. Measured on {self.text}:\n\n{measured}"


# ---- quantisation


def _quantised(source: CompressionInput, config: Callable[[Any], Any]) -> Compressed:
    with quiet_libraries():
        from torchao import quantization
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    class Quantizer(TorchAoHfQuantizer):
        """torchao's quantizer, which lists only tensors of submodules. torchao cannot read files that list a tensor of
        the model itself (BART's final_logits_bias)."""

        def get_state_dict_and_metadata(self, model: Any) -> Any:
            tensors, metadata = super().get_state_dict_and_metadata(model)
            names = [name for name in json.loads(metadata["tensor_names"]) if "." in name]
            return tensors, {**metadata, "tensor_names": json.dumps(names)}

    model = source.model
    check_linear_layers(model)
    settings = TorchAoConfig(
        config(quantization), modules_to_not_convert=[r".*long_attention", *heads_of_model(model)]
    )
    with checkpoint_errors(f"torchao cannot quantise {type(model).__name__}"):
        quantised = source.load(source.folder, quantization_config=settings, dtype=torch.bfloat16)
    quantised.hf_quantizer.__class__ = Quantizer
    return Compressed(quantised, quantised, is_changed=lambda name: name.endswith("_weight_qdata"))


def heads_of_model(model: Any) -> list[str]:
    """Names of the modules outside the base model: heads and output layers, which are not quantised."""
    base = model.base_model
    if base is model:  # a model without a head, or one with its stacks and its linear head side by side (T5)
        headless = type(model).__name__.endswith(WITHOUT_HEAD)
        return [name for name, module in model.named_children() if isinstance(module, nn.Linear) and not headless]
    return [name for name, module in model.named_children() if module is not base]


def check_linear_layers(model: Any) -> None:
    """Refuse a model that torchao would not change, or that transformers could not load after quantisation.

    Raises:
        OptionError: the model has no ``nn.Linear`` layers (GPT-2 has transformers' ``Conv1D``), or its files have
            fused projections. transformers splits these on loading, but cannot split quantised weights.
    """
    name = type(model).__name__
    linear = (path for path, module in model.base_model.named_modules() if isinstance(module, nn.Linear))
    if not any("long_attention" not in path for path in linear):
        raise OptionError(
            f"{name} has no nn.Linear layers, which torchao quantises (GPT-2 has Conv1D); choose --method bf16."
        )
    converters = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightConverter)]
    fused = next((entry for entry in converters if len(entry.target_patterns) > len(entry.source_patterns)), None)
    if fused is not None:
        raise OptionError(
            f"The files of {name} hold {len(fused.target_patterns)} layers as one ({fused.source_patterns[0]}), and "
            "transformers cannot split quantised weights when it reads them; choose --method bf16."
        )


def int8(source: CompressionInput) -> Compressed:
    """Quantise weights to 8 bits (torchao). In every call, inputs are quantised to 8 bits with one scale per token."""
    compressed = _quantised(source, lambda ao: ao.Int8DynamicActivationInt8WeightConfig())
    warn_of_overflow(compressed.model)  # warnings were hidden while it was loaded
    return compressed


def bf16(source: CompressionInput) -> Compressed:
    rounded = source.load(source.folder, dtype=torch.bfloat16)
    return Compressed(rounded, rounded)


def count_changed(source: Path, written: Path, compressed: Compressed) -> dict[str, int]:
    """Count the written tensors with a new dtype or shape, their bytes, and all bytes."""

    before = Counter(stored_tensors(source).values())
    after = stored_tensors(written)
    new = Counter(stored for name, stored in after.items() if compressed.is_changed(name)) - before
    return {
        "tensors": new.total(),
        "bytes": sum(count * size * math.prod(shape) for (size, shape), count in new.items()),
        "all_bytes": sum(size * math.prod(shape) for size, shape in after.values()),
    }


def stored_tensors(folder: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name of every tensor in a folder's files -> bytes per number, and shape."""
    tensors = {}
    for _, name, dtype, shape in tensor_headers(folder):
        bits = re.search(r"\d+", dtype)  # F32, BF16, I8, BOOL
        size = 1
        if bits is not None:
            size = int(bits[0]) // 8
        tensors[name] = (size, shape)
    return tensors


METHODS: dict[str, Callable[[CompressionInput], Compressed]] = {
    "int8": int8,
    # products are computed in bf16
    "int8-weight-only": lambda source: _quantised(source, lambda ao: ao.Int8WeightOnlyConfig()),
    "bf16": bf16,
    "prune-heads": prune_heads,
}
QUANTISED = ("int8", "int8-weight-only")


def accuracy(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Compare the outputs ``found`` with ``expected``.

    Returns:
        For every output ``relative_error``: the norm of the difference divided by the norm of the expected values. For
        states and embeddings also ``cosine`` and ``least_cosine``: mean and minimum cosine similarity of the vectors.
        For scores of several classes or tokens ``same_choice``: the fraction of vectors with the same argmax.
    """
    measured = {}
    for name, want in expected.items():
        have = found[name].float()
        values = {"relative_error": ((have - want).norm() / want.norm().clamp(min=1e-12)).item()}
        if "logits" not in name:
            cosine = functional.cosine_similarity(want, have, dim=-1)
            values |= {"cosine": cosine.mean().item(), "least_cosine": cosine.min().item()}
        elif want.shape[-1] > 1:
            values["same_choice"] = (want.argmax(-1) == have.argmax(-1)).float().mean().item()
        measured[name] = values
    return measured


# ---- the command


def compress_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: CompressionConfig | None = None,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    **settings: Any,
) -> CompressionReport:
    """Write a smaller checkpoint of a model, and measure loss, time and size before and after.

        hf_longattn.compress_checkpoint("longformer-base", "longformer-int8", method="int8")

    Args:
        source: folder or Hub repository id of a Long model or a transformers model with safetensors files.
        destination: a folder that does not exist.
        config: the settings. Keyword arguments such as ``method="prune-heads", share=0.25`` replace single settings.
        overwrite: replace an existing destination.
        revision, token: of a Hub repository.

    Raises:
        OptionError: unknown or impossible settings.
        CheckpointError: the source cannot be loaded or is already quantised, no tensor changed, or outputs are not as
            expected.
        InputError: the text is shorter than ``length``.
        MissingExtraError: torchao is not installed.
        CheckpointError: the destination exists.
    """
    chosen = CompressionConfig(**settings) if config is None else dataclasses.replace(config, **settings)
    if chosen.method not in METHODS:
        raise OptionError(
            f"There is no method {chosen.method!r}; choose one of "
            f"{', '.join(METHODS)}.{nearest(chosen.method, METHODS)}"
        )
    if chosen.method in QUANTISED:
        check_extra("compress", "torchao")
    with quiet_libraries():
        opened, target = open_for_writing(source, destination, overwrite=overwrite, revision=revision, token=token)
    inputs = CompressionInput.from_source(opened, chosen)
    if chosen.method in QUANTISED and sentence_class(opened.card_folder) == EMBEDDINGS:
        # transformers cannot load a base model from quantised files that include a head
        inputs.model = without_head(inputs.model)
    class_name, longest = type(inputs.model).__name__, inputs.long_length()
    lengths = sorted({min(SHORT_LENGTH, longest), longest})
    before = inputs.measure(inputs.model, opened.folder, lengths)
    # at the maximum length, since every head may see all tokens of a short input
    outputs_before = inputs.outputs(inputs.model, lengths[-1])
    compressed = METHODS[chosen.method](inputs)

    with staged_folder(target, overwrite=overwrite) as stage:
        saved, load_settings = compressed.model, {}
        if compressed.dtype is not None:
            saved = copy.deepcopy(compressed.model).to(compressed.dtype)
            load_settings["dtype"] = torch.float32
        with quiet_libraries():
            saved.save_pretrained(stage)
        del saved
        add_source_files(opened, stage, longest_input(inputs.model.config) or 0)
        changed = count_changed(opened.folder, stage, compressed)
        if not changed["tensors"]:
            raise CheckpointError(
                f"--method {chosen.method} changes no tensor of this {class_name}, so nothing was kept; choose "
                "another --method."
            )
        try:
            again = inputs.load(stage, **load_settings)
        except CheckpointError as error:
            raise CheckpointError(
                f"What was written for {class_name} cannot be read again, so nothing was kept: {error}"
            ) from error
        with checkpoint_errors(f"What was written for {class_name} cannot be run, so nothing was kept"):
            outputs = inputs.outputs(again, lengths[-1])
            expected = inputs.outputs(compressed.expected, lengths[-1])
        difference = max(
            float((outputs[name] - values).abs().max() / values.abs().max()) for name, values in expected.items()
        )
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"What was written computes something else ({difference:.1e} of the largest output), so nothing was "
                f"kept: {class_name} with this mechanism cannot be compressed by {chosen.method!r}; "
                "choose another --method."
            )
        after = inputs.measure(again, stage, lengths)
        values = dataclasses.asdict(chosen)
        if chosen.text is not None:
            values["text"] = Path(chosen.text).name
        report = CompressionReport(
            destination=target,
            config=values,
            measured={"before": before, "after": after},
            difference=difference,
            changed=changed,
            outputs=accuracy(outputs_before, outputs),
            pruned=compressed.pruned,
            text=inputs.text,
            files=with_report(stage, REPORT),
            versions=versions(),
        )
        origin = origin_of(opened.name)
        introduction = (
            f"`{class_name}`, compressed by `longattn compress --method {chosen.method}` from {origin}.\n\n"
            f"{report.table()}"
        )
        write_report(stage, opened, str(destination), report, REPORT, introduction=introduction)
    return report
