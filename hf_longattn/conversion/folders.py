"""The folder of a result: weights and config, and the source's other files.

Every command that writes a model writes weights and config into a :func:`~hf_longattn.files.staged_folder`. It then calls
:func:`add_source_files` (tokenizer, templates, generation and processor configs, modules and prompts of sentence-transformers,
licence) and :func:`write_report` (report and card).
"""

from __future__ import annotations

import contextlib
import filecmp
import fnmatch
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from ..errors import CheckpointError
from ..files import (
    MODULES,
    PREDICTIONS,
    SETTINGS_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_LIMIT,
    TRANSFORMER_SETTINGS,
    check_destination,
    copy_folder,
    destination_path,
    read_json_object,
    write_json,
)
from ..hub import write_model_card
from ..loading import SIDECARS, fetch_model
from ..modeling.family.registration import model_type_table
from .plan_positions import StackLength
from .sources import SIDECAR_FOLDERS, Source, open_source, write_modules

LEFT_OUT = (
    "config.json", "README.txt", "*_report.json", "*.index.json", "trainer_state.json", "*_results.json", "training_log.json",
    *PREDICTIONS,
)  # fmt: skip
"""Files of a source that are not copied: the result has its own, or they are about the source's training and evaluation."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
PROCESSORS = ("*processor_config.json", "chat_template*", "*.jinja")
"""Files of processors and templates, which are not written when a model and its tokenizer are saved."""
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
OF_TOKENIZERS = ("merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Further files of some tokenizers."""
ANY_TOKENIZER, ANY_FAST_TOKENIZER = "TokenizersBackend", "PreTrainedTokenizerFast"
"""Names of transformers' class for any tokenizer.json; transformers 4 knows only the second."""


class Report(Protocol):
    """The report of a command about its result."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""


def add_source_files(
    source: Source,
    stage: Path,
    max_length: int,
    *,
    longer: bool = False,
    tokenizer_length: int = 0,
    generated: StackLength | None = None,
    changed_files: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[str]:
    """Copy what belongs to a model besides weights and config. Returns the names of the files.

    Args:
        source: the checkpoint that the result is made from. The licences are in its card's folder.
        stage: the result's folder, with its weights and ``config.json``.
        max_length: maximum tokens that the result takes; 0 if unlimited.
        longer: whether a sentence encoder reads texts of up to max_length; else as much of a text as the source.
        tokenizer_length: the tokenizer's new limit; 0 leaves it as it is.
        generated: old and new length of generated text; a generation config limited to the old length gets the new one.
        changed_files: new contents of copied JSON files, by file name.

    Raises:
        CheckpointError: a copied file is damaged.
    """
    base_type, written = str(source.config.get("model_type")), []
    files = {path.name: path for pattern in LICENCES for path in source.card_folder.glob(pattern)}
    files |= {path.name: path for pattern in SIDECARS for path in source.folder.glob(pattern)}
    left = {name for name in files for pattern in LEFT_OUT if fnmatch.fnmatchcase(name, pattern)}
    for path in (files[name] for name in sorted(files.keys() - left) if files[name].is_file()):
        if path.name == TOKENIZER_CONFIG:
            write_json(stage / path.name, _tokenizer_settings(read_json_object(path), base_type, tokenizer_length))
        elif path.name == "generation_config.json" and generated is not None:
            values = read_json_object(path)
            if values.get("max_length") == generated.old:  # a shorter one is the author's choice
                values["max_length"] = generated.new
            write_json(stage / path.name, values)
        elif path.name == "tokenizer.json" and tokenizer_length and (values := read_json_object(path)).get("truncation"):
            write_json(stage / path.name, {**values, "truncation": {**values["truncation"], "max_length": tokenizer_length}})
        elif path.name in changed_files:
            write_json(stage / path.name, dict(changed_files[path.name]))
        else:
            shutil.copyfile(path, stage / path.name)
        written.append(path.name)
    for name in SIDECAR_FOLDERS:
        if (source.folder / name).is_dir():
            copy_folder(source.folder / name, stage / name)
            written.append(name)
    if TOKENIZER_CONFIG not in written and any(name in written for name in TOKENIZER_FILES):
        write_json(stage / TOKENIZER_CONFIG, _tokenizer_settings({}, base_type, tokenizer_length))
        written.append(TOKENIZER_CONFIG)
    if (config := read_json_object(stage / "config.json")).pop("auto_map", None) is not None:  # its file stays with the source
        write_json(stage / "config.json", config)
    return [*written, *([] if source.root is None else write_modules(source.root, stage, max_length, longer=longer))]


def with_report(files: Iterable[str], report_file: str) -> tuple[str, ...]:
    """The names of all files of a result, with its report and its card."""
    return (*dict.fromkeys(files), report_file, "README.md")


def write_report(
    stage: Path,
    source: Source,
    name: str,
    report: Report,
    report_file: str,
    *,
    introduction: str | None = None,
    made_from: str | None = None,
    **card: Any,
) -> None:
    """Complete a result's folder with report and card.

    Args:
        stage: the folder, with all other files.
        source: the checkpoint that the result is made from.
        name: what users type to load the result.
        report_file: the name of the report's file.
        introduction: the first sentence of the card.
        made_from: what the user calls the source, for the card; the source's name if it is not given.
        card: more arguments of :func:`~hf_longattn.hub.model_card`.
    """
    values = report.to_dict()
    write_json(stage / report_file, values)
    origin = source.name if made_from is None else made_from
    contents = {
        "base_model": None if Path(origin).expanduser().exists() else origin,
        "source": source.card_folder,
        "report": values,
        "name": name,
        "introduction": introduction,
    }
    write_model_card(stage, **{**contents, **card})


def open_for_writing(
    model: str | Path, destination: str | Path, *, overwrite: bool, revision: str | None = None, token: str | bool | None = None
) -> tuple[Source, Path]:
    """Open the source of a result, and check the destination.

    Args:
        model: a folder, or a Hub repository id.
        destination: the folder of the result.
        overwrite: the destination may exist.
        revision, token: of a Hub repository.

    Returns:
        The source, and the absolute path of the destination.

    Raises:
        CheckpointError, DestinationExistsError: the source cannot be read, or the destination must not be written.
    """
    target = destination_path(destination)
    source = open_source(model, revision=revision, token=token)
    check_destination(target, *source.protected, overwrite=overwrite)
    return source, target


def complete_folder(folder: Path, source: str | Path) -> list[str]:
    """Add files that a training library did not save, from the model that it trained. Returns their names.

    Args:
        folder: the saved model, with its tokenizer.
        source: the folder, or the repository on the Hub, that the model was loaded from.
    """
    try:
        place = fetch_model(source)
    except CheckpointError:  # no connection: the model is saved without these files
        return []
    files = _files_around(place, (*LICENCES, *PROCESSORS))
    written = [name for name in sorted(files) if not (folder / name).exists()]
    for name in written:
        shutil.copyfile(files[name], folder / name)
    for name in SIDECAR_FOLDERS:
        if (place / name).is_dir() and not (folder / name).exists():
            copy_folder(place / name, folder / name)
            written.append(name)
    if (place / MODULES).is_file() and not (folder / MODULES).exists() and _class_of(place) == _class_of(folder):
        written += write_modules(place, folder)
    return written


def _class_of(folder: Path) -> Any:
    """The class that a config.json names."""
    config = folder / "config.json"
    return read_json_object(config).get("architectures") if config.is_file() else None


def _files_around(place: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """Files in a checkpoint's folder, by name. With those in the sentence encoder's folder that contains it."""
    around = (place, place.parent) if (place.parent / MODULES).is_file() else (place,)
    files = {path.name: path for home in reversed(around) for pattern in patterns for path in home.glob(pattern)}
    return {name: path for name, path in files.items() if path.is_file()}


def remove_sidecars(folder: Path, source: str | None) -> None:
    """Remove an earlier model's files before another is saved in its folder.

    The other could inherit a chat template, for example.

    Args:
        folder: of the earlier model.
        source: what the earlier model was made from, if known. Licences are removed only if they are copies from there.
    """
    others = ("*processor_config.json", "generation_config.json")
    for pattern in (*TOKENIZER_FILES, *OF_TOKENIZERS, SETTINGS_FILE, MODULES, TRANSFORMER_SETTINGS, *others):
        for path in folder.glob(pattern):
            path.unlink()
    for name in SIDECAR_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    if not source:
        return
    with contextlib.suppress(CheckpointError):  # no connection, or the source is not there any more
        for name, licence in _files_around(fetch_model(source), LICENCES).items():
            if (folder / name).is_file() and not licence.samefile(folder / name) and filecmp.cmp(folder / name, licence, shallow=False):
                (folder / name).unlink()


def _tokenizer_settings(values: dict[str, Any], base_type: str, length: int) -> dict[str, Any]:
    """Tokenizer settings with a new limit and the class that transformers loads. A limit of 0 leaves it unchanged.

    The class is written since programs may not know the result's model type. It is the file's class, or the model type's if the file
    names none or transformers overrides it (Qwen2).
    """
    from transformers.models.auto import tokenization_auto

    of_type = tokenization_auto.TOKENIZER_MAPPING_NAMES.get(base_type)
    named = values.get("tokenizer_class")
    overridden = base_type in (model_type_table("tokenizer_overrides", tokenization_auto) or ())
    if isinstance(of_type, str) and (named is None or (overridden and str(named).removesuffix("Fast") != of_type)):
        named = of_type
    chosen = {} if named is None else {"tokenizer_class": ANY_FAST_TOKENIZER if named == ANY_TOKENIZER else named}
    settings = {**values, **chosen}
    return {**settings, TOKENIZER_LIMIT: length} if length else settings
