"""Export a long checkpoint as one graph for all batch sizes and lengths: ONNX, or a program of torch.export."""

from __future__ import annotations

import contextlib
import inspect
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..conversion.folders import add_source_files, versions, with_report, write_report
from ..conversion.source_models import (
    NAMES,
    OWN_FIELDS,
    Source,
    attached_mechanisms,
    load_checked,
    open_source,
    quiet_libraries,
    refuse_quantised,
)
from ..data.english import verification_text
from ..errors import EXTRAS, CheckpointError, check_extra, in_one_line, nearest
from ..evaluation.pooling import sentence_pooling, write_for_servers
from ..files import GRAPHS, check_destination, destination_path, staged_folder, write_json
from ..hub import AUTO_CLASSES, origin_of
from ..inputs.running import reads_only_text
from ..inputs.tokenizer import VerificationText, load_tokenizer
from ..inspect import inspect_checkpoint
from ..mechanisms import list_mechanisms
from ..mechanisms.common.registry import mechanism_class
from ..modeling.family.registration import auto_mapping
from ..modeling.family.sliding_window import with_base_windows
from ..modeling.family.validation import known_length
from ..modeling.generic import family_in
from ..reports import FAILED, Check
from .graphs import ModelGraph, page_inputs, runner

REPORT = "export_report.json"
LONG_CONFIG = "long_config.json"


@dataclass(frozen=True)
class ExportReport:
    """A finished export.

    inputs, outputs: names, in order. min_length, max_length: minimum (pad shorter texts) and maximum tokens that the graph takes.
    text: description of the inputs on which graph and model were compared.
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
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as in export_report.json."""
        values = {name: value for name, value in self.__dict__.items() if name != "destination"}
        return {**values, "checks": [check.to_dict() for check in self.checks]}


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
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Export a long checkpoint that reads texts as one graph, and compare it with the model.

    They are compared at three lengths. Weights are written in float32. A decoder is exported as one pass over a whole text, without a
    cache. The graph of a sentence-transformers model also returns ``sentence_embedding``, pooled and normalised by the model's modules;
    their files are copied next to the graph. config.json is the base's config, for programs without this package (sentence-transformers,
    optimum, text-embeddings-inference), since the graph contains the attention. The Long config is written as long_config.json.

    Args:
        model: the folder of a long checkpoint, or a Hub repository id.
        destination: a folder that does not exist yet: the graph (model.onnx or model.pt2), the config, the tokenizer and a report.
        format: "onnx", or "torch" for ``torch.export.load``.
        opset: of ONNX; None takes PyTorch's default.
        task: the task of the exported head, one of :data:`hf_longattn.hub.AUTO_CLASSES`; None keeps the head of the checkpoint.
        global_attention_mask: add this input to the graph; without it, only the model's config decides which tokens are global.
        overwrite: replace an existing folder, once the new one is complete.
        revision, token: of a Hub repository.
        progress: called with a sentence before each step.

    Raises:
        MissingExtraError: a package that the format needs is not installed.
        CheckpointError: the model cannot be exported, or the graph differs from the model.
        CheckpointError: the source cannot be read, or the destination must not be written.
    """
    if format not in GRAPHS:
        raise CheckpointError(f"Unknown format {format!r}; expected {', '.join(GRAPHS)} or, for a stock model, native (export_native).")
    if opset is not None and format != "onnx":
        raise CheckpointError(f"opset is ONNX's; give format='onnx' (--format onnx), not {format!r}, or leave opset out.")
    if format == "onnx":
        check_extra("onnx")
    target = destination_path(destination)
    inspection = inspect_checkpoint(model, revision=revision, token=token)
    source, max_length = inspection.source, inspection.max_length
    check_destination(target, source.folder, source.card_folder, overwrite=overwrite)
    if inspection.apart:
        raise CheckpointError(
            f"A graph reads one kind of input, and a {inspection.class_name} has the towers {' and '.join(inspection.apart)}; save one "
            f"apart: hf_longattn.{next(iter(inspection.towers.values())).class_name}.from_pretrained({source.name!r}).save_pretrained(...)."
        )
    family: Any = family_in(source.config)
    if not reads_only_text(family.model_class(inspection.class_name)):
        raise CheckpointError(f"A graph reads a text, and a {inspection.class_name} reads other inputs; run it in PyTorch.")
    refuse_quantised(source)
    source = open_source(model, revision=revision, token=token)  # now with its weights
    say = progress or (lambda sentence: None)
    say(f"reading {in_one_line(source.folder.name if Path(source.name).expanduser().exists() else source.name)}")
    loaded = _load(source, inspection.class_name, task)
    if getattr(loaded.config, "is_encoder_decoder", False):
        raise CheckpointError(f"A {type(loaded).__name__} has an encoder and a decoder, and a graph has one of them; run it in PyTorch.")
    refused = sorted({mechanism.name for mechanism in attached_mechanisms(loaded).values() if not mechanism.traits.exports})
    if refused:
        good = ", ".join(name for name in list_mechanisms(grid=False) if mechanism_class(name).traits.exports)
        raise CheckpointError(
            f"Mechanism {refused[0]!r} has data-dependent control flow and cannot be exported; these can be exported: {good}."
        )
    words = VerificationText(*verification_text(None), load_tokenizer(source.folder, loaded.config), loaded.config.vocab_size)
    tokenizer = words.tokenizer
    names = input_names(loaded, tokenizer, global_attention_mask)
    graph = ModelGraph(loaded, words, names, sentence_pooling(source.card_folder)).eval()
    onnx = format == "onnx"
    with staged_folder(target, overwrite=overwrite) as stage:
        outputs, shortest, used = write_graph(graph, stage / GRAPHS[format], format, max_length, opset, say)
        say(f"comparing {GRAPHS[format]} with the model")
        checks = graph.check(runner(stage / GRAPHS[format], outputs, format), (shortest, max_length))
        if failed := [check for check in checks if check.status == FAILED]:
            raise CheckpointError(
                f"The exported graph differs from the model, so nothing was kept: {failed[0].detail}; export another --format."
            )
        plain = {name: value for name, value in with_base_windows(loaded.config.to_dict()).items() if name not in {*NAMES, *OWN_FIELDS}}
        heads = [name for name, class_name in family.model_classes.items() if type(loaded).__name__ in (name, class_name)]
        shutil.copyfile(source.folder / "config.json", stage / LONG_CONFIG)
        write_json(stage / "config.json", {"architectures": heads, "model_type": family.base_model_type, **plain})
        add_source_files(source, stage, max_length)
        write_for_servers(stage, known_length(loaded.config, tokenizer) or max_length)
        report = ExportReport(
            target, format, type(loaded).__name__, names, outputs, shortest, max_length, used, tuple(checks),
            with_report(stage, REPORT), sum(path.stat().st_size for path in stage.iterdir()), versions(*(EXTRAS["onnx"] if onnx else ())),
            text=words.describe(),
        )  # fmt: skip
        introduction = (
            f"The long model (`{type(loaded).__name__}`) as one {'ONNX' if onnx else 'torch.export'} graph for {inspection.longest_input}, "
            f"made by `longattn export` from {origin_of(source.name)}."
        )
        write_report(stage, source, str(destination), report, REPORT, introduction=introduction)
    return report


def input_names(model: nn.Module, tokenizer: Any | None, global_attention_mask: bool) -> tuple[str, ...]:
    """Names of the graph's inputs, which depend on the model, its tokenizer and ``global_attention_mask``."""
    taken = inspect.signature(model.forward).parameters
    from_tokenizer = [] if tokenizer is None else tokenizer.model_input_names
    names = ["input_ids", "attention_mask"]
    if "token_type_ids" in from_tokenizer and "token_type_ids" in taken:
        names.append("token_type_ids")
    if global_attention_mask:
        if not any(mechanism.traits.takes_globals for mechanism in attached_mechanisms(model).values()):
            raise CheckpointError("No layer of this model takes global tokens; leave global_attention_mask out.")
        names.append("global_attention_mask")
    return (*names, *page_inputs(model))


def _load(source: Source, class_name: str, task: str | None) -> Any:
    """Load the model with the head for ``task`` (``None``: its own head), in float32."""
    import transformers

    family = family_in(source.config)
    assert family is not None
    model_class = family.model_class(class_name)
    if task is not None:
        if task not in AUTO_CLASSES:
            raise CheckpointError(f"Unknown task {task!r}; expected one of {', '.join(sorted(AUTO_CLASSES))}.{nearest(task, AUTO_CLASSES)}")
        heads = auto_mapping(getattr(transformers, AUTO_CLASSES[task]))
        if family.config_class not in heads:
            raise CheckpointError(f"A {family.config_class.model_type!r} model has no head for the task {task!r}; leave --task out.")
        chosen = heads[family.config_class]
        model_class = chosen[0] if isinstance(chosen, tuple | list) else chosen
    model, missing = load_checked(model_class, source.folder, source.name, headless=True, dtype=torch.float32)
    if missing:
        raise CheckpointError(
            f"{source.name!r} was saved as {class_name} and has no weights for {min(missing)!r} of {type(model).__name__}; "
            "export the head that it has, or fine-tune this one first."
        )
    return model


def write_graph(
    graph: ModelGraph, file: Path, format: str, max_length: int, opset: int | None, say: Callable[[str], None]
) -> tuple[tuple[str, ...], int, int | None]:
    """Trace the graph and write it to ``file``, for inputs of up to ``max_length`` tokens; ``say`` is called before each step.

    Returns:
        The names of the outputs, the minimum length, and the opset of an ONNX file (PyTorch's default if ``opset`` is ``None``).

    Raises:
        CheckpointError: PyTorch cannot write this model as one graph.
    """
    with torch.no_grad(), _hushed():
        try:
            say(f"tracing {type(graph.model).__name__} as one graph")
            traced = graph.traced(max_length)
            for module in traced.program.graph_module.modules():
                if isinstance(module, torch.fx.GraphModule):
                    for node in module.graph.nodes:
                        node.meta.pop("stack_trace", None)  # which names files of this machine
            say(f"writing {file.name}")
            if format == "torch":
                torch.export.save(traced.program, file)
                return traced.outputs, traced.shortest, None
            onnx = torch.onnx.export(
                traced.program, kwargs=traced.example, input_names=list(traced.example), output_names=list(traced.outputs),
                opset_version=opset, verbose=False,
            )  # fmt: skip
        except OSError:
            raise
        except Exception as error:  # tracing, translation and checks raise any type of error
            failed = f"PyTorch cannot write this {type(graph.model).__name__} as one {format} graph for all lengths ({_cause(error)})"
            if any(type(module).__name__.endswith("Experts") for module in graph.model.modules()):
                raise CheckpointError(
                    f"{failed}: transformers loops over the experts that the tokens chose, whatever the mechanism; run the model itself, "
                    "or write one with windows for serving engines with --format native."
                ) from error
            raise CheckpointError(
                f"{failed}; run the model itself, or export one with another mechanism, for example longformer."
            ) from error
        assert onnx is not None
        onnx.save(str(file))
        return traced.outputs, traced.shortest, onnx.model.opset_imports[""]


def _cause(error: BaseException) -> str:
    """First line of the original error; errors raised from it address PyTorch's developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:160]}" if lines else type(error).__name__


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Silence the exporters' warnings about their steps and missing packages."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
