"""A long checkpoint as one graph for all batch sizes and lengths: ONNX, or a program of torch.export."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import ExportError
from ..architectures.base import attached_mechanisms
from ..files.staging import check_destination, destination_path, staged_folder
from ..files.writing import write_json
from ..inspection import inspect_checkpoint
from ..quiet import quiet_libraries
from ..report import FAILED, Check
from ..running.loading import newly_initialised, without_random_pooler
from ..sources.base import SIDECARS, Source
from ..text import VerificationText, load_tokenizer, verification_text
from .check import check_export, example_inputs
from .graph import FILES, FORMATS, write_graph

__all__ = ["TASKS", "ExportReport", "export_checkpoint"]

TASKS = {
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "question-answering": "AutoModelForQuestionAnswering",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
}
"""The Hub's names of tasks, and the Auto class that gives a checkpoint the head of each."""
REPORT = "export_report.json"
EXTRA = "pip install onnx onnxscript onnxruntime"


@dataclass(frozen=True)
class ExportReport:
    """A finished export.

    inputs, outputs: names, in order. min_length, max_length: tokens the graph takes at least (pad shorter texts) and at most.
    """

    destination: Path
    format: str
    class_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    min_length: int
    max_length: int
    opset: int | None
    checks: tuple[Check, ...]
    files: tuple[str, ...]
    bytes_written: int
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as in export_report.json."""
        return {**self.__dict__, "destination": str(self.destination), "checks": [check.to_dict() for check in self.checks]}


@quiet_libraries()
def export_checkpoint(
    model: str | Path,
    destination: str | Path,
    *,
    format: str = "onnx",
    opset: int | None = None,
    task: str | None = None,
    global_attention_mask: bool = False,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> ExportReport:
    """Write a long checkpoint as one graph, and compare it with the model at three lengths before it is put in place.

    Weights are written in float32. A decoder is exported as one pass over a whole text, without a cache.

    Args:
        model: the folder of a long checkpoint, or a Hub repository id.
        destination: a folder that does not exist yet: the graph (model.onnx or model.pt2), the config, the tokenizer and a report.
        format: "onnx", or "torch" for ``torch.export.load``.
        opset: of ONNX; None takes PyTorch's default.
        task: which head, one of ``TASKS``; None takes the one that the checkpoint was saved with.
        global_attention_mask: give the graph this input as well; otherwise the global tokens are those of the configuration.
        overwrite: replace an existing folder, once the new one is complete.
        revision, token: of a Hub repository.

    Raises:
        ExportError: a mechanism or an architecture that cannot be written so, a missing package, a result that differs from the model.
        CheckpointError, DestinationExistsError: a source that cannot be read, a destination that must not be written.
    """
    if format not in FORMATS:
        raise ExportError(f"The format is {format!r}, but must be one of {', '.join(map(repr, FORMATS))}.")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(name)]
    if format == "onnx" and missing:
        raise ExportError(f"The ONNX format needs the package {missing[0]!r}, which is not installed; type {EXTRA}.")
    target = destination_path(destination)
    found = inspect_checkpoint(model, revision=revision, token=token)
    check_destination(target, found.source.folder, overwrite=overwrite)
    if "long_attention" not in found.source.config:
        raise ExportError(f"{found.source.name!r} is a short checkpoint; convert it first (longattn convert {found.source.name} DST).")
    loaded = _load(found.source, found.class_name, task)
    _check_mechanisms(loaded)
    text, origin = verification_text(None)
    words = VerificationText(text, origin, load_tokenizer(found.source.folder), loaded.config.vocab_size)
    names = input_names(loaded, words.tokenizer, global_attention_mask)
    with staged_folder(target, needed_bytes=5 * sum(p.numel() for p in loaded.parameters()), overwrite=overwrite) as stage:
        example_of = partial(example_inputs, loaded, names, words, 2)
        outputs, shortest, used = write_graph(loaded, example_of, stage / FILES[format], format, found.max_length, opset)
        checks = check_export(loaded, names, outputs, stage / FILES[format], format, words, (shortest, found.max_length))
        if failed := [check for check in checks if check.status == FAILED]:
            raise ExportError(f"The exported graph differs from the model, so nothing was kept: {failed[0].detail}.")
        files = _sidecars(found.source.folder, stage)
        written = sum(path.stat().st_size for path in stage.iterdir())
        report = ExportReport(
            target, format, type(loaded).__name__, names, outputs, shortest, found.max_length, used, tuple(checks), (*files, REPORT),
            written, _versions(format),
        )  # fmt: skip
        write_json(stage / REPORT, report.to_dict())
    return report


def input_names(model: nn.Module, tokenizer: Any | None, global_attention_mask: bool) -> tuple[str, ...]:
    """The inputs of the graph: what the tokenizer gives and the model takes."""
    taken = inspect.signature(model.forward).parameters
    given = [] if tokenizer is None else tokenizer.model_input_names
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if "token_type_ids" in given and "token_type_ids" in taken else [])]
    if global_attention_mask:
        if not any(mechanism.takes_globals for mechanism in attached_mechanisms(model).values()):
            raise ExportError("No layer of this model takes global tokens, so there is no global_attention_mask to give; leave it out.")
        names.append("global_attention_mask")
    if getattr(model.config, "is_encoder_decoder", False):
        names.append("decoder_input_ids")
    return tuple(names)


def _load(source: Source, class_name: str, task: str | None) -> Any:
    """The model with the head of the task, in float32."""
    import transformers

    from ...families import FAMILIES

    family = next(one for one in FAMILIES.values() if one.config_class.model_type == source.config["model_type"])
    model_class = family.model_class(class_name)
    if task is not None:
        if task not in TASKS:
            raise ExportError(f"The task is {task!r}, but must be one of {', '.join(TASKS)}.")
        heads = getattr(transformers, TASKS[task])._model_mapping
        if family.config_class not in heads:
            raise ExportError(f"A {family.config_class.model_type!r} model has no head for the task {task!r}.")
        chosen = heads[family.config_class]
        model_class = chosen[0] if isinstance(chosen, tuple | list) else chosen
    model, info = model_class.from_pretrained(
        source.folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    missing = without_random_pooler(model, set(info["missing_keys"]))
    if newly_initialised(missing, model):
        raise ExportError(
            f"{source.name!r} was saved as {class_name} and has no weights for {min(missing)!r} of {type(model).__name__}; "
            "export the head that it has, or fine-tune this one first."
        )
    return model.eval()


def _check_mechanisms(model: nn.Module) -> None:
    from ...mechanisms import list_mechanisms
    from ...mechanisms.registry import mechanism_class

    refused = sorted({mechanism.name for mechanism in attached_mechanisms(model).values() if not mechanism.exports})
    if refused:
        good = ", ".join(name for name in list_mechanisms() if mechanism_class(name).exports)
        raise ExportError(
            f"Mechanism {refused[0]!r} decides while it runs how its work is laid out, which one graph for all lengths cannot say; "
            f"these can be exported: {good}."
        )


def _sidecars(folder: Path, stage: Path) -> list[str]:
    """The config, the tokenizer and the rest of what is small."""
    for path in sorted({path for pattern in SIDECARS for path in folder.glob(pattern) if path.is_file()}):
        if not path.name.endswith(("_report.json", ".index.json")):
            shutil.copyfile(path, stage / path.name)
    return sorted(path.name for path in stage.iterdir())


def _versions(format: str) -> dict[str, str]:
    from importlib.metadata import version

    from ... import __version__

    used = ["torch", "transformers", *(["onnx", "onnxscript", "onnxruntime"] if format == "onnx" else [])]
    return {"hf_longattn": __version__, **{name: version(name) for name in used}}
