"""Export a checkpoint as one graph for all batch sizes and lengths: ONNX, OpenVINO, or a program of torch.export.

transformers' exporters trace the model and write the file. Then a runtime runs the file, and outputs are compared with
the model's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import shutil
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..conversion.architecture import NAMES, OWN_FIELDS, class_of, read_long
from ..conversion.folders import add_source_files, versions, with_report, write_report
from ..conversion.load import attached_mechanisms, load_checked, quiet_libraries
from ..conversion.source import Source, open_source, refuse_quantised
from ..conversion.tokenizer import VerificationText, load_tokenizer
from ..errors import EXTRAS, BackendError, CheckpointError, check_extra, in_one_line, nearest
from ..evaluation.pooling import SentencePooling, sentence_pooling, write_for_servers
from ..evaluation.token_loss import verification_text
from ..files import (
    GRAPHS,
    TOKENIZER_CONFIG,
    TOKENIZER_LIMIT,
    check_destination,
    check_space,
    destination_path,
    disk_is_full,
    is_long,
    read_json_object,
    staged_folder,
    write_json,
)
from ..hub import AUTO_CLASSES, origin_of
from ..mechanisms.common.registry import why_not_exported
from ..modeling.attach.attention_sites import attention_sites
from ..modeling.classes import check_interface
from ..modeling.family.definition import known_family, known_length
from ..modeling.family.plain_spec import reads_only_text
from ..modeling.family.registration import auto_mapping
from ..modeling.family.sliding_window import with_base_windows
from ..modeling.generic import check_class, family_in
from ..modeling.inference import without_cache
from ..names import BACKEND
from ..reports import FAILED, Check, Difference, equality

REPORT = "export_report.json"
UNLIMITED = 1 << 20
"""Maximum tokens of a graph whose model has no maximum."""
LONG_CONFIG = "long_config.json"
FORMATS = {"onnx": "ONNX", "openvino": "OpenVINO", "torch": "torch.export"}
"""Format of a graph -> its name in a card."""


@dataclass(frozen=True)
class ExportReport:
    """A finished export.

    inputs, outputs: names, in order.
    max_length: maximum tokens that the graph takes. The minimum is 2; pad shorter texts.
    text: description of the inputs on which graph and model were compared.
    """

    destination: Path
    format: str
    class_name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
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
    """Export a checkpoint that reads texts as one graph, and compare it with the model.

    A stock model needs no conversion; its attention is computed exactly. Memory is linear in the length: an ONNX graph
    computes full attention in blocks of queries, and OpenVINO has an operator for it. Graph and model are compared at
    three lengths. Weights are written in float32. The graph of a sentence-transformers model also returns
    ``sentence_embedding``, pooled and normalised by the model's modules; their files are copied next to the graph.
    config.json is the stock architecture's, for programs without this package (sentence-transformers, optimum,
    text-embeddings-inference), since the graph contains the attention. A Long config is written as long_config.json.
    If the tokenizer has no lower limit, its ``model_max_length`` becomes the graph's.

    Args:
        model: the folder of a checkpoint, long or not, or a Hub repository id.
        destination: a folder that does not exist yet: the graph (model.onnx, openvino_model.xml or model.pt2), the
            config, the tokenizer and a report.
        format: "onnx", "openvino", or "torch" for ``torch.export.load``.
        opset: ONNX opset; None takes PyTorch's default.
        task: the task of the exported head, one of :data:`hf_longattn.hub.AUTO_CLASSES`; None keeps the head of the
            checkpoint.
        global_attention_mask: add this input to the graph; without it, only the model's config decides which tokens
            are global.
        overwrite: replace an existing folder, once the new one is complete.
        revision, token: of a Hub repository.
        progress: called with a sentence before each step.

    Raises:
        MissingExtraError: a package that the format needs is not installed.
        CheckpointError: the model cannot be read or exported, the graph differs from it, or the destination must not
            be written.
    """
    exporter = _exporter(format)
    if opset is not None and format != "onnx":
        raise CheckpointError(f"opset is for ONNX graphs, not for {format!r}; leave it out.")
    target = destination_path(destination)
    source = open_source(model, revision=revision, token=token, weights=False)
    check_destination(target, source.folder, source.card_folder, overwrite=overwrite)
    model_class = _model_class(source)
    refuse_quantised(source)
    source = open_source(model, revision=revision, token=token)  # now with its weights
    say = progress or (lambda sentence: None)
    is_local = Path(source.name).expanduser().exists()
    say(f"reading {in_one_line(source.folder.name if is_local else source.name)}")
    loaded = _load(source, model_class, task)
    max_length = known_length(loaded.config, None, loaded) or UNLIMITED
    words = VerificationText(
        *verification_text(None), load_tokenizer(source.folder, loaded.config), loaded.config.vocab_size
    )
    names = input_names(loaded, words.tokenizer, global_attention_mask)
    graph = ModelGraph(loaded, words, names, sentence_pooling(source.card_folder)).eval()
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in loaded.state_dict().values()}  # tied ones count once
    check_space(target.parent, sum(weights.values()))
    with staged_folder(target, overwrite=overwrite) as stage:
        file = stage / GRAPHS[format]
        say(f"tracing {type(loaded).__name__} and writing {file.name}")
        experts = loaded.get_experts_implementation()
        with contextlib.suppress(ValueError):  # the model has no experts
            # one grouped product; other implementations loop over the experts that the example's tokens choose
            loaded.set_experts_implementation("grouped_mm")
        outputs, used = write_graph(graph, exporter, file, format, max_length, opset)
        loaded.set_experts_implementation(experts)
        say(f"comparing {file.name} with the model")
        run = runner(file, outputs, format)
        checks = [
            compared(graph, run, graph.example(batch, min(length, max_length))) for batch, length in COMPARED_SHAPES
        ]
        failed = next((check for check in checks if check.status == FAILED), None)
        if failed is not None:
            raise CheckpointError(
                f"The exported graph differs from the model, so nothing was kept: {failed.detail}; export another "
                "--format."
            )
        add_config(source, stage, loaded)
        add_source_files(source, stage, max_length)
        # ONNX Runtime does not report a text that is too long. The tokenizer and servers read the limit from files.
        limit = known_length(loaded.config, words.tokenizer, loaded) or max_length
        if words.tokenizer is not None and words.tokenizer.model_max_length > limit:
            settings = read_json_object(stage / TOKENIZER_CONFIG)
            write_json(stage / TOKENIZER_CONFIG, {**settings, TOKENIZER_LIMIT: limit})
        write_for_servers(stage, limit)
        report = ExportReport(
            target,
            format,
            type(loaded).__name__,
            names,
            outputs,
            max_length,
            used,
            tuple(checks),
            with_report(stage, REPORT),
            sum(path.stat().st_size for path in stage.iterdir()),
            versions(*EXTRAS.get(format, ())),
            text=words.describe(),
        )
        introduction = (
            f"The model (`{type(loaded).__name__}`) as one {FORMATS[format]} graph for up to {max_length:,} "
            f"tokens, made by `longattn export` from {origin_of(source.name)}."
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
        if not any(mechanism.capabilities.takes_globals for mechanism in attached_mechanisms(model).values()):
            raise CheckpointError("No layer of this model takes global tokens; leave global_attention_mask out.")
        names.append("global_attention_mask")
    family: Any = known_family(model.config)
    return (*names, *(() if family is None else family.spec.further))


def _exporter(format: str) -> Any:
    """What writes graphs of this format.

    Raises:
        MissingExtraError: a package that the format needs is not installed.
        CheckpointError: the format is unknown, or transformers is too old.
    """
    if format not in GRAPHS:
        raise CheckpointError(
            f"Unknown format {format!r}; expected {', '.join(GRAPHS)} or, for a stock model, native (export_native)."
        )
    if format in EXTRAS:
        check_extra(format)
    if importlib.util.find_spec("transformers.exporters") is None:
        raise CheckpointError(
            f"transformers {transformers.__version__} has no exporters; type pip install -U 'transformers>=5.24'."
        )
    from .exporters import EXPORTERS

    return EXPORTERS[format]()


def _model_class(source: Source) -> Any:
    """The class of a long or stock checkpoint that reads a text.

    Raises:
        CheckpointError: there is no class, it reads other inputs, or the attention of a stock model is not on
            transformers' AttentionInterface.
    """
    model_class: Any = type(read_long(source)[3]) if is_long(source.config) else class_of(source.config)
    if model_class is None:
        model_type, version = source.config.get("model_type"), transformers.__version__
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, and transformers {version} has no class for it; give another."
        )
    if not reads_only_text(model_class):
        raise CheckpointError(
            f"A graph reads a text, and a {model_class.__name__} reads other inputs; run it in PyTorch."
        )
    if is_long(source.config):
        return model_class
    try:
        check_interface(model_class)
    except BackendError as error:
        advice = "give another model"
        if family_in(source.config) is not None:
            advice = f"type longattn convert {source.name} DST, and export DST"
        raise CheckpointError(
            f"{model_class.__name__} does not take its attention from transformers' AttentionInterface, so its graph "
            f"would hold all N×N scores; {advice}."
        ) from error
    return model_class


def _load(source: Source, model_class: Any, task: str | None) -> Any:
    """Load the model with the head for ``task`` (``None``: its own head), in float32.

    Raises:
        CheckpointError: there is no such head, the checkpoint has no weights for it, or no graph can hold this model.
    """
    saved = model_class.__name__
    if task is None:
        check_class(source.name, source.folder, source.config)
    else:
        if task not in AUTO_CLASSES:
            raise CheckpointError(
                f"Unknown task {task!r}; expected one of "
                f"{', '.join(sorted(AUTO_CLASSES))}.{nearest(task, AUTO_CLASSES)}"
            )
        config_class = model_class.config_class
        heads = auto_mapping(getattr(transformers, AUTO_CLASSES[task]))
        if config_class not in heads:
            raise CheckpointError(
                f"A {config_class.model_type!r} model has no head for the task {task!r}; leave --task out."
            )
        chosen = heads[config_class]
        model_class = chosen[0] if isinstance(chosen, tuple | list) else chosen
    settings: dict[str, Any] = {} if is_long(source.config) else {"attn_implementation": BACKEND}
    model, missing = load_checked(
        model_class, source.folder, source.name, headless=True, dtype=torch.float32, **settings
    )
    if missing:
        raise CheckpointError(
            f"{source.name!r} was saved as {saved} and has no weights for {min(missing)!r} of {type(model).__name__}; "
            "export the head that it has, or fine-tune this one first."
        )
    if any(site.causal for site in attention_sites(model)):
        raise CheckpointError(
            f"A graph is an encoder, and a {type(model).__name__} has a decoder; run it in PyTorch. A server takes "
            "stock models, which --format native writes."
        )
    for mechanism in attached_mechanisms(model).values():
        if (reason := why_not_exported(mechanism)) is not None:
            raise CheckpointError(reason)
    return model


def add_config(source: Source, stage: Path, model: Any) -> None:
    """Write the config of the stock architecture. That of a long checkpoint is kept as ``long_config.json``."""
    values, heads, family = source.config, [type(model).__name__], family_in(source.config)
    if is_long(values):
        assert family is not None
        shutil.copyfile(source.folder / "config.json", stage / LONG_CONFIG)
        plain = {
            name: value
            for name, value in with_base_windows(model.config.to_dict()).items()
            if name not in {*NAMES, *OWN_FIELDS}
        }
        heads = [name for name, class_name in family.model_classes.items() if heads[0] in (name, class_name)]
        values = {"model_type": family.base_model_type, **plain}
    write_json(stage / "config.json", {**values, "architectures": heads})


def write_graph(
    graph: ModelGraph, exporter: Any, file: Path, format: str, max_length: int, opset: int | None
) -> tuple[tuple[str, ...], int | None]:
    """Trace the graph and write it to ``file``, for inputs of up to ``max_length`` tokens.

    Returns:
        The names of the outputs, and the opset of an ONNX file (PyTorch's default if ``opset`` is ``None``).

    Raises:
        CheckpointError: transformers' exporters cannot write this model as one graph.
    """
    example = graph.example(2, min(max_length, EXAMPLE_TOKENS))
    # The exporters warn of their own steps, print them, and print the unfinished graph of an error.
    unread = io.StringIO()
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(unread),
            contextlib.redirect_stderr(unread),
        ):
            warnings.simplefilter("ignore")
            outputs = tuple(graph(**example))
            program = exporter.exported(graph, example, max_length, opset)
            exporter.save_program(program, file)
    except OSError:
        raise
    except Exception as error:  # tracing, translation and checks raise any type of error
        if disk_is_full(error):
            raise
        cause: BaseException = error  # those raised from it are for PyTorch's developers
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = " ".join([f"{type(cause).__name__}:", *str(cause).strip().splitlines()[:1]])[:180]
        where = ""
        for frame, _ in traceback.walk_tb(cause.__traceback__):  # the innermost module that ran, not PyTorch's own
            module = frame.f_locals.get("self")
            is_own = isinstance(module, nn.Module) and not type(module).__module__.startswith("torch.")
            if is_own and module is not graph:
                where = f", because of its {type(module).__name__}"
        advice = "run the model itself"
        if exporter.is_traced and format != "torch":
            advice += ", or export it with --format torch"
        raise CheckpointError(
            f"PyTorch cannot write this {type(graph.model).__name__} as one {format} graph for all lengths{where} "
            f"({why}); {advice}."
        ) from error
    return outputs, program.opset_imports[""] if format == "onnx" else None


Runner = Callable[[dict[str, Tensor]], dict[str, Tensor]]

EXAMPLE_TOKENS = 600
"""Number of tokens of the traced text, unless the model takes fewer."""
COMPARED_SHAPES = ((3, 7), (2, 333), (1, 2048))
"""Batch sizes and lengths to compare. The graph's maximum length replaces lengths that the graph does not take."""


class ModelGraph(nn.Module):
    """A model without cache as a function from named inputs to a dictionary of tensors.

    It takes all batch sizes and lengths.

    names: names of the inputs, in order.
    """

    def __init__(
        self, model: nn.Module, words: VerificationText, names: tuple[str, ...], pooling: SentencePooling | None
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.fixed = {"return_dict": True, **without_cache(model)}
        self.words, self.names, self.pooling = words, names, pooling

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Run the model. An output with the name of an input gets the prefix ``output_``."""
        tensors = {}
        for name, value in self.model(**inputs, **self.fixed).items():
            if isinstance(value, Tensor):
                tensors[f"output_{name}" if name in inputs else name] = value
            elif isinstance(value, tuple):  # for example a backbone's feature maps
                tensors |= {f"{name}.{number}": tensor for number, tensor in enumerate(value)}
        if self.pooling is not None and "last_hidden_state" in tensors:
            tensors["sentence_embedding"] = self.pooling(tensors["last_hidden_state"], inputs["attention_mask"])
        return tensors

    def example(self, batch: int, length: int) -> dict[str, Tensor]:
        """Texts of different lengths, right-padded to ``(batch, length)``."""
        ids = self.words.tokens(length).repeat(batch, 1)
        real = torch.tensor([length - (row + 1) * length // 7 for row in range(batch)])[:, None]
        mask = torch.arange(length)[None] < real
        config = self.model.config
        ids = torch.where(mask, ids, config.pad_token_id or 0)
        separator = getattr(config, "question_separator_id", None)
        if separator is not None and length > 2:  # adds a question, so that the graph must find it
            ids = ids.index_fill(1, torch.tensor([min(length // 4, 8)]), separator)
        if getattr(config, "global_token_ids", None) and length > 4:
            ids = ids.index_fill(1, torch.tensor([length // 2]), config.global_token_ids[0])
        family = known_family(config)
        further = {} if family is None else family.spec.further_inputs(config, batch, length)
        inputs = {"input_ids": ids, "attention_mask": mask.long(), **further}
        if "token_type_ids" in self.names:
            second = torch.arange(length)[None] >= length // 2  # a pair of texts, if the model has two token types
            inputs["token_type_ids"] = second.long() * mask * (getattr(config, "type_vocab_size", 1) > 1)
        if "global_attention_mask" in self.names:
            first = torch.arange(length)[None] < 2 + torch.arange(batch)[:, None]
            inputs["global_attention_mask"] = first.long() * mask
        return inputs


def compared(graph: ModelGraph, run: Runner, inputs: dict[str, Tensor]) -> Check:
    """Compare the outputs of graph and model for these texts, except at padding, where they are undefined."""
    batch, length = inputs["input_ids"].shape[0], inputs["input_ids"].shape[-1]
    name, values = "equal to the model", {"batch": batch, "length": length}
    texts, mask = f"{batch} × {length:,} tokens with padding", inputs["attention_mask"] != 0
    with torch.no_grad():
        expected = graph(**inputs)
    try:
        outputs = run(inputs)
    except Exception as error:  # runtimes raise any type of error
        why = f"{texts}: the runtime cannot run it ({type(error).__name__})"
        return Check(name, FAILED, why, {**values, "difference": None})
    real: dict[str, Any] = {
        output: mask if value.shape[: mask.dim()] == mask.shape else ... for output, value in expected.items()
    }
    difference = Difference.of(
        *({output: each[output][real[output]] for output in expected} for each in (expected, outputs))
    )
    return equality(name, f"{texts}: largest difference", difference, {**values, "difference": difference.relative})


def runner(file: Path, outputs: tuple[str, ...], format: str) -> Runner:
    """Load the graph in ``file`` into the runtime for ``format``, on the CPU and in float32."""
    if format == "torch":
        program: Callable[..., Any] = torch.export.load(file).module()
        return lambda inputs: program(**inputs)
    if format == "openvino":
        import openvino

        precise = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(file, "CPU", precise)
        taken = {name for value in compiled.inputs for name in value.get_names()}

        def values_of(arrays: dict[str, Any]) -> list[Any]:
            found = compiled(arrays)
            return [found[name].copy() for name in outputs]
    else:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        values_of = partial(session.run, list(outputs))

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # unused inputs are removed from the graph
        arrays = {name: value.numpy() for name, value in inputs.items() if name in taken}
        return dict(zip(outputs, map(torch.from_numpy, values_of(arrays)), strict=True))

    return run
