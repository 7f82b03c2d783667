"""Write a smaller checkpoint: with 8 bits per weight, in bf16, or without the least important heads.

torchao quantises with a config of transformers, so that ``from_pretrained`` loads the result if torchao is installed.
The written files are read again and compared with the model in memory. The loss at a short and a long length, the time
and the size are measured.
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
"""Maximum difference between an output of the written files and of the expected model, as a fraction of the largest
absolute value of this output."""


@dataclass(frozen=True)
class CompressionReport:
    """A finished compression.

    Attributes:
        destination: folder of the compressed model.
        config: the settings.
        measured: "before" and "after", each with ``loss`` (length -> nats per token, and its standard error),
            ``seconds`` of one pass at the longest length, and ``bytes`` of the weights.
        difference: largest difference between outputs of the written files and of the expected model, as a fraction of
            the largest output. The expected model is the model that was written (quantised, bf16), or the source with
            the pruned heads multiplied by 0.
        changed: ``tensors`` and ``bytes``: number and size of the changed tensors in the files. ``all_bytes``: size of
            all tensors.
        outputs: name of an output -> its :func:`accuracy` in comparison with the source.
        pruned: number of a layer -> numbers of its removed heads.
        text: description of the text on which the losses were measured.
        files: names of the written files.
        versions: name of a library -> its version.
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
        """The report as a dictionary for JSON, as in compression_report.json."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "destination"}

    def rows(self) -> list[tuple[str, ...]]:
        """Rows of a table: name of a measurement, value before, value after."""
        before, after = self.measured["before"], self.measured["after"]
        rows: list[tuple[str, ...]] = []
        for length in before["loss"]:
            losses = (before["loss"][length], after["loss"][length])
            values = [plus_minus(loss["loss"], loss["loss_se"], 3) for loss in losses]
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
        """The report in Markdown, for the model card."""
        measured = markdown_table(("", "before", "after"), self.rows())
        return f"Changed: {self.changed_in_words()}. Measured on {self.text}:\n\n{measured}"


# ---- quantisation


def _quantised(source: CompressionInput, config: str) -> Compressed:
    """The model with quantised weights. ``config``: name of a config class in ``torchao.quantization``."""
    with quiet_libraries():
        from torchao import quantization
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    class Quantizer(TorchAoHfQuantizer):
        """torchao's quantizer, whose files list only tensors of submodules.

        torchao cannot read files that list a tensor of the model itself, such as BART's final_logits_bias.
        """

        def get_state_dict_and_metadata(self, model: Any) -> Any:
            tensors, metadata = super().get_state_dict_and_metadata(model)
            submodule_names = [name for name in json.loads(metadata["tensor_names"]) if "." in name]
            return tensors, {**metadata, "tensor_names": json.dumps(submodule_names)}

    model = source.model
    check_linear_layers(model)
    settings = TorchAoConfig(
        getattr(quantization, config)(), modules_to_not_convert=[r".*long_attention", *heads_of_model(model)]
    )
    with checkpoint_errors(f"torchao cannot quantise {type(model).__name__}"):
        quantised = source.load(source.folder, quantization_config=settings, dtype=torch.bfloat16)
    quantised.hf_quantizer.__class__ = Quantizer
    return Compressed(quantised, quantised, is_changed=lambda name: name.endswith("_weight_qdata"))


def heads_of_model(model: Any) -> list[str]:
    """Names of the modules outside the base model, which are not quantised: heads and output layers."""
    base = model.base_model
    if base is not model:
        return [name for name, module in model.named_children() if module is not base]
    if type(model).__name__.endswith(WITHOUT_HEAD):
        return []
    # T5, for example, has a linear head beside its stacks.
    return [name for name, module in model.named_children() if isinstance(module, nn.Linear)]


def check_linear_layers(model: Any) -> None:
    """Refuse a model that torchao would not change, or that transformers could not load after quantisation.

    Raises:
        OptionError: the base model has no ``nn.Linear`` layers (GPT-2 has transformers' ``Conv1D``), or its files have
            several projections in one tensor. transformers splits such a tensor when it loads a model, but cannot
            split a quantised one.
    """
    name = type(model).__name__
    modules = model.base_model.named_modules()
    linear = [path for path, module in modules if isinstance(module, nn.Linear) and "long_attention" not in path]
    if not linear:
        raise OptionError(
            f"{name} has no nn.Linear layers, which torchao quantises (GPT-2 has Conv1D); choose --method bf16."
        )
    for entry in get_model_conversion_mapping(model):
        if isinstance(entry, WeightConverter) and len(entry.target_patterns) > len(entry.source_patterns):
            raise OptionError(
                f"The files of {name} hold {len(entry.target_patterns)} layers as one ({entry.source_patterns[0]}), "
                "and transformers cannot split quantised weights when it reads them; choose --method bf16."
            )


def int8(source: CompressionInput) -> Compressed:
    """Quantise weights to 8 bits. In every call, inputs are also quantised to 8 bits, with a scale for each token."""
    compressed = _quantised(source, "Int8DynamicActivationInt8WeightConfig")
    warn_of_overflow(compressed.model)  # warnings were hidden while the model was loaded
    return compressed


def int8_weight_only(source: CompressionInput) -> Compressed:
    """Quantise weights to 8 bits. Products are computed in bf16."""
    return _quantised(source, "Int8WeightOnlyConfig")


def bf16(source: CompressionInput) -> Compressed:
    """Round all weights to bf16."""
    rounded = source.load(source.folder, dtype=torch.bfloat16)
    return Compressed(rounded, rounded)


def count_changed(source: Path, written: Path, compressed: Compressed) -> dict[str, int]:
    """Number of written tensors with a new dtype or shape, their bytes, and the bytes of all written tensors.

    Tensors may have new names. The tensors of each dtype and shape are therefore counted, before and after.
    """
    before = Counter(stored_tensors(source).values())
    after = stored_tensors(written)
    new = Counter(stored for name, stored in after.items() if compressed.is_changed(name)) - before
    return {
        "tensors": new.total(),
        "bytes": sum(count * size * math.prod(shape) for (size, shape), count in new.items()),
        "all_bytes": sum(size * math.prod(shape) for size, shape in after.values()),
    }


def stored_tensors(folder: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Name of a tensor in the files of a folder -> bytes of one of its numbers, and its shape."""
    tensors = {}
    for _, name, dtype, shape in tensor_headers(folder):
        bits = re.search(r"\d+", dtype)  # in F32, BF16, I8; BOOL has 1 byte
        size = 1
        if bits is not None:
            size = int(bits[0]) // 8
        tensors[name] = (size, shape)
    return tensors


METHODS: dict[str, Callable[[CompressionInput], Compressed]] = {
    "int8": int8,
    "int8-weight-only": int8_weight_only,
    "bf16": bf16,
    "prune-heads": prune_heads,
}
"""Name of a method -> the function that compresses a model."""
QUANTISED = ("int8", "int8-weight-only")
"""The methods that need torchao."""


def accuracy(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Compare the outputs ``found`` with ``expected``, both by name.

    Returns:
        Name of an output -> measures by name. ``relative_error`` is the norm of the difference over the norm of the
        expected values. States and embeddings also have ``cosine`` and ``least_cosine``, the mean and the minimum
        cosine similarity of the vectors. Logits of several classes or tokens have ``same_choice``, the fraction of
        vectors with the same argmax.
    """
    measures = {}
    for name, wanted in expected.items():
        values = found[name].float()
        measures[name] = {"relative_error": ((values - wanted).norm() / wanted.norm().clamp(min=1e-12)).item()}
        if "logits" not in name:
            cosine = functional.cosine_similarity(wanted, values, dim=-1)
            measures[name] |= {"cosine": cosine.mean().item(), "least_cosine": cosine.min().item()}
        elif wanted.shape[-1] > 1:
            measures[name]["same_choice"] = (wanted.argmax(-1) == values.argmax(-1)).float().mean().item()
    return measures


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
        OptionError: a setting is unknown, or the model cannot be compressed in this way.
        CheckpointError: the source cannot be loaded or is already quantised, the destination exists, no tensor
            changed, or the outputs of the written files are not as expected.
        InputError: the text is shorter than ``length``.
        MissingExtraError: torchao is not installed.
    """
    # Settings, source and destination
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
        # sentence-transformers loads a base model, and transformers cannot do so from quantised files with a head
        inputs.model = without_head(inputs.model)

    # Measure, and compress. Outputs are compared at the long length, because mechanisms may see all tokens of a short
    # input.
    class_name = type(inputs.model).__name__
    longest = inputs.long_length()
    lengths = sorted({min(SHORT_LENGTH, longest), longest})
    before = inputs.measure(inputs.model, opened.folder, lengths)
    outputs_before = inputs.outputs(inputs.model, longest)
    compressed = METHODS[chosen.method](inputs)

    with staged_folder(target, overwrite=overwrite) as stage:
        # Write
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

        # Read again, and compare
        try:
            again = inputs.load(stage, **load_settings)
        except CheckpointError as error:
            raise CheckpointError(
                f"What was written for {class_name} cannot be read again, so nothing was kept: {error}"
            ) from error
        with checkpoint_errors(f"What was written for {class_name} cannot be run, so nothing was kept"):
            outputs = inputs.outputs(again, longest)
            expected = inputs.outputs(compressed.expected, longest)
        difference = max(
            float((outputs[name] - values).abs().max() / values.abs().max()) for name, values in expected.items()
        )
        if not difference <= TOLERANCE:  # true for NaN
            raise CheckpointError(
                f"What was written computes something else ({difference:.1e} of the largest output), so nothing was "
                f"kept: {class_name} with this mechanism cannot be compressed by {chosen.method!r}; "
                "choose another --method."
            )

        # Measure again, and report
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
