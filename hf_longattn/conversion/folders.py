"""The folder of a result: weights and config, the source's other files, report and model card.

A command that writes a model first writes weights and config into a :func:`~hf_longattn.files.staged_folder`. Then it
calls :func:`add_source_files`, and :func:`complete_result`, which refuses a failed check and adds report and card.
Commands without checks call :func:`write_report` instead.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import (
    DOCUMENT_LIMIT,
    LICENCES,
    MODULES,
    SENTENCE_LIMIT,
    SETTINGS_FILE,
    SIDECAR_FOLDERS,
    SIDECARS,
    TOKENIZER_CONFIG,
    TOKENIZER_LIMIT,
    TRANSFORMER_SETTINGS,
    check_destination,
    destination_path,
    matcher,
    read_json_object,
    sentence_modules,
    sentence_values,
    write_json,
)
from ..hub import next_step, write_model_card
from ..modeling.family.definition import UNLIMITED_LENGTH
from ..modeling.family.input_spec import tokenizer_files
from ..modeling.family.registration import model_type_table
from ..reports import FAILED, NEEDS_TRAINING, TOLERANCE, Check
from .plan import ConversionPlan, StackLength
from .source import Source, open_source

REPLACED = matcher(("config.json", "*.index.json"))
"""Names of files that every result has of its own, so the source's are not copied."""
POSITIONS = "positions at the new length"
"""Name of the checks that repeat the plan's warnings about positions."""
VERDICT, READY, TRAIN, UNKNOWN = "verdict", "ready to use", "train before use", "cannot tell"
"""The key in a check's values for its verdict on training, and the three verdicts."""
WOULD_TELL = "would_tell"
"""The key in a check's values for a measurement that would allow a verdict, as a noun phrase. It is set if the verdict
is :data:`UNKNOWN`."""

StageProgress = Callable[[str, int, int], None]
"""`progress(stage, done, total)`. The stage "write" counts bytes, and "verify" counts checks."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Do nothing. This is the default for ``progress``."""


def train_command(task: str, *arguments: str, output: str = "trained") -> dict[str, Any]:
    """The `longattn train` command for a result, in the form of a report's ``next_step``.

    "{model}" stands for the result's name. ``output``: ending of the trained model's name.
    """
    return {
        "command": ["longattn", "train", task, "--model", "{model}", *arguments, "--output", f"{{model}}-{output}"]
    }


@dataclass
class ConversionReport:
    """A finished conversion.

    Attributes:
        destination: the folder that was written.
        files: names of the files in the folder.
        bytes_written: total size of the files with weights.
        config: the settings that differ from their defaults.
        plan: the plan in the form of :meth:`ConversionPlan.to_dict`.
        checks: the checks, each with a status and a sentence.
        text: description of the inputs on which the models were run.
        versions: versions of this package, of Python and of the libraries.
        next_step: how to train the result, with "{model}" for its name. ``None`` if the result needs no training.
        train_command: the command of ``next_step`` for ``destination``, or advice; ``None`` without a next step.
        verified: whether the result was checked. A result that fails a check is never written.
        deciding: the check with a verdict on training; ``None`` if there is none.
        verdict: the verdict of ``deciding``: "ready to use", "train before use" or "cannot tell".
        needs_training: whether some check has the status "needs training".
    """

    destination: Path
    config: dict[str, Any]
    plan: dict[str, Any]
    checks: tuple[Check, ...]
    text: str
    files: tuple[str, ...]
    bytes_written: int
    versions: dict[str, str]
    next_step: dict[str, Any] | None

    def __post_init__(self) -> None:
        """Set the attributes that follow from checks and next step."""
        self.deciding = next((check for check in self.checks if VERDICT in check.values), None)
        self.verified = bool(self.checks)
        self.verdict = self.train_command = None
        if self.deciding is not None:
            self.verdict = str(self.deciding.values[VERDICT])
        if self.next_step is not None:
            self.train_command = next_step(self.next_step, str(self.destination))
        self.needs_training = any(check.status == NEEDS_TRAINING for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form, as in conversion_report.json."""
        derived = {name: getattr(self, name) for name in ("verified", "verdict", "needs_training", "train_command")}
        values = {
            name: value for name, value in vars(self).items() if name not in {"destination", "deciding", *derived}
        }
        checks = [check.to_dict() for check in self.checks]
        return {**derived, "tolerance": TOLERANCE, **values, "checks": checks, "files": list(self.files)}


def versions(*further: str) -> dict[str, str]:
    """Versions of this package, of Python, and of the libraries that load a model. ``further``: other libraries."""
    from .. import __version__

    return {
        "hf_longattn": __version__,
        **{name: version(name) for name in ("transformers", "torch", "safetensors", *further)},
        "python": platform.python_version(),
    }


def add_source_files(source: Source, stage: Path, max_length: int, plan: ConversionPlan | None = None) -> None:
    """Copy a source's files other than weights and config into the folder of its result.

    Args:
        stage: the result's folder, which has weights and config already.
        max_length: maximum tokens of the result; 0 if there is no maximum.
        plan: the plan of a conversion. With it, files of tokenizer, sentence encoder, generation and processor get the
            new lengths or sizes.
    """
    tokenizer_length = 0 if plan is None else plan.tokenizer_length
    base_type = str(source.config.get("model_type"))
    files = {path.name: path for pattern in LICENCES for path in source.card_folder.glob(pattern)}
    files |= {path.name: path for pattern in SIDECARS for path in source.folder.glob(pattern)}
    for name, file in sorted(files.items()):
        if not file.is_file() or REPLACED.match(name):
            continue
        if name == TOKENIZER_CONFIG:
            values = _tokenizer_settings(read_json_object(file), base_type, tokenizer_length)
        else:
            values = {} if plan is None else changed_values(file, plan)
        if values:
            write_json(stage / name, values)
        else:
            shutil.copyfile(file, stage / name)
    for name in SIDECAR_FOLDERS:
        if (source.folder / name).is_dir():
            shutil.copytree(source.folder / name, stage / name, copy_function=shutil.copyfile)  # without file modes
    if tokenizer_files(stage) and not (stage / TOKENIZER_CONFIG).exists():
        write_json(stage / TOKENIZER_CONFIG, _tokenizer_settings({}, base_type, tokenizer_length))
    complete_config(stage, source, plan)
    if source.root is not None:
        write_modules(source.root, stage, max_length, longer=bool(tokenizer_length))


def changed_values(file: Path, plan: ConversionPlan) -> dict[str, Any]:
    """The new content of a JSON file that a conversion copies. Empty if the file is copied unchanged."""
    if file.name == "generation_config.json":
        values = read_json_object(file)
        length = plan.decoder or StackLength(plan.old_length, plan.new_length)
        if values.get("max_length") == length.old:  # another limit was chosen by the author, and stays
            values["max_length"] = length.new
        return values
    if file.name == "tokenizer.json" and plan.tokenizer_length:
        values = read_json_object(file)
        if not values.get("truncation"):
            return {}
        if plan.tokenizer_length > UNLIMITED_LENGTH:
            values["truncation"] = None
        else:
            values["truncation"]["max_length"] = plan.tokenizer_length
        return values
    return dict(plan.files.get(file.name, {}))


def complete_config(stage: Path, source: Source, plan: ConversionPlan | None) -> None:
    """Complete the written config.json. ``auto_map`` is removed if its code was not copied, and a converted model gets
    the dtype in its source's config."""
    config = read_json_object(stage / "config.json")
    completed = dict(config)
    if not any(stage.glob("modeling_long_*.py")):
        completed.pop("auto_map", None)
    dtype = source.config.get("dtype") or source.config.get("torch_dtype")
    if plan is not None and dtype is not None:
        completed["dtype"] = dtype
    if completed != config:
        write_json(stage / "config.json", completed)


def write_modules(root: Path, folder: Path, max_length: int = 0, *, longer: bool = False) -> None:
    """Write the files of sentence-transformers into the folder of a result.

    The transformer's files are in ``folder`` itself, so that AutoModel loads it. The other modules have folders
    inside.

    Args:
        root: the source, a folder of sentence-transformers.
        folder: the folder of the result.
        max_length: maximum tokens of the result; 0 if there is none. Longer limits in the settings are lowered to it.
        longer: whether the result reads more tokens than the source. The limits are then raised to ``max_length``,
            too.
    """
    modules = sentence_modules(root)
    write_json(folder / MODULES, [{**modules[0], "path": ""}, *modules[1:]])
    for settings in sorted((root / modules[0]["path"]).glob(TRANSFORMER_SETTINGS)):
        values = sentence_values(settings)
        for name in (SENTENCE_LIMIT, DOCUMENT_LIMIT):
            if values.get(name) is not None and max_length:
                values[name] = max_length if longer else min(values[name], max_length)
        write_json(folder / settings.name, values)
    if (root / SETTINGS_FILE).is_file():
        shutil.copyfile(root / SETTINGS_FILE, folder / SETTINGS_FILE)
    for module in modules[1:]:
        if module["path"] and (root / module["path"]).is_dir():
            place = folder / module["path"]
            shutil.copytree(root / module["path"], place, copy_function=shutil.copyfile, dirs_exist_ok=True)


def with_report(stage: Path, report_file: str) -> tuple[str, ...]:
    """Names of the files in ``stage``, and of the report and the model card, which are written last."""
    return (*sorted(path.name for path in stage.iterdir() if not path.name.startswith(".")), report_file, "README.md")


def complete_result(
    stage: Path,
    source: Source,
    name: str,
    report_file: str,
    checks: Sequence[Check],
    introduction: str | None = None,
    **facts: Any,
) -> ConversionReport:
    """Write report and model card of a result, and return the report. A result with a failed check is refused.

    Args:
        stage: the folder in which the result was written.
        name: the destination as typed by the user.
        report_file: name of the report's file.
        introduction: first paragraph of the card, in place of the usual one.
        facts: the other fields of :class:`ConversionReport`.
    """
    failed = [check.detail for check in checks if check.status == FAILED]
    if failed:
        raise CheckpointError(f"Verification failed, so nothing was kept: {'; '.join(failed)}.")
    report = ConversionReport(
        destination=destination_path(name),
        checks=tuple(checks),
        files=with_report(stage, report_file),
        bytes_written=sum(path.stat().st_size for path in stage.glob("*.safetensors")),
        versions=versions(),
        **facts,
    )
    write_report(stage, source, name, report, report_file, introduction=introduction)
    return report


def write_report(stage: Path, source: Source, name: str, report: Any, report_file: str, **card: Any) -> None:
    """Write report and model card into a result's folder.

    Args:
        name: the name by which users load the result.
        report: an object with a method ``to_dict``.
        report_file: name of the report's file.
        card: further arguments of :func:`~hf_longattn.hub.write_model_card`.
    """
    values = report.to_dict()
    write_json(stage / report_file, values)
    base_model = None if Path(source.name).expanduser().exists() else source.name
    write_model_card(stage, base_model=base_model, source=source.card_folder, report=values, name=name, **card)


def open_for_writing(
    model: str | Path | Source,
    destination: str | Path,
    *,
    overwrite: bool,
    revision: str | None,
    token: str | bool | None,
) -> tuple[Source, Path]:
    """Open a source, and check the destination of its result. Returns the source, and the destination's absolute
    path."""
    target = destination_path(destination)
    source = model if isinstance(model, Source) else open_source(model, revision, token)
    check_destination(target, source.folder, source.card_folder, overwrite=overwrite)
    return source, target


def _tokenizer_settings(values: dict[str, Any], base_type: str, length: int) -> dict[str, Any]:
    """Settings of a tokenizer with a new limit, and with the class of the tokenizer.

    A program without this package does not know the model type of the result, so the class has to be in the settings.
    It is the class of the source's model type if the settings have none, or if transformers overrides theirs (Qwen2).

    Args:
        values: the settings, which are changed.
        base_type: model type of the source.
        length: the new limit in tokens; 0 to keep the old one.
    """
    from transformers.models.auto import tokenization_auto

    usual_class = tokenization_auto.TOKENIZER_MAPPING_NAMES.get(base_type)
    class_name = values.get("tokenizer_class")
    overrides = base_type in (model_type_table("tokenizer_overrides", tokenization_auto) or ())
    overridden = overrides and str(class_name).removesuffix("Fast") != usual_class
    if isinstance(usual_class, str) and (class_name is None or overridden):
        class_name = usual_class
    if class_name == "TokenizersBackend":
        class_name = "PreTrainedTokenizerFast"  # its name in transformers 4
    if class_name is not None:
        values["tokenizer_class"] = class_name
    if length:
        values[TOKENIZER_LIMIT] = length
    return values
