"""The interface of sources. A format recognises a checkpoint and opens it as a `Source`, from which all later steps read.

A format is one file of this folder with a :class:`SourceFormat` in it, which ``@register_source`` makes known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ...errors import CheckpointError, check_registration
from ...hub_errors import NO_FOLDER, check_revision
from ...lazy import load_modules
from ...loading import load_weights, loading_errors
from ...modeling.family.definition import tower_field
from ...reading import check_files, check_name
from ..tensor_files import INDEX, WEIGHTS, TensorHeader, read_tensor

F = TypeVar("F", bound="type[SourceFormat]")

SIDECARS = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
"""Names of the files beside the weights that belong to a model: config, tokenizer, templates, licence."""
SIDECAR_FOLDERS = ("additional_chat_templates",)


@dataclass(frozen=True)
class ResultInfo:
    """Facts about the result, for a source that writes its files beside it.

    destination: where the result will be.
    class_name, module: name and module of its model class.
    max_length: maximum tokens that it takes; 0 if unlimited.
    longer: whether it reads texts of up to max_length; else as much of a text as the source.
    name: what users type to load it; the destination by default.
    """

    destination: Path
    class_name: str
    module: str
    max_length: int
    longer: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. A format whose checkpoints are more than config and weights derives from it.

    name: what the user typed.
    folder: with its config, its tokenizer and everything else but the weights.
    config: its config.json. tensors: the headers of its tensors, by name.
    loading: arguments of ``load_weights(class, folder, ...)`` for transformers' own reader of the weights, so that a mistake in `tensors`
        shows in the comparison. ``None`` if transformers cannot read them; then the model gets the values of `tensors`.
    paths: files and folders besides `folder` that belong to it and must not be written to.
    tower: the name of the tower that this source is; ``None`` for a whole model.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]
    loading: Mapping[str, Any] | None = None
    paths: tuple[Path, ...] = ()
    tower: str | None = None

    @property
    def protected(self) -> tuple[Path, ...]:
        """Everything that belongs to the source and must not be written to."""
        return (self.folder, *self.paths)

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def card_folder(self) -> Path:
        """The folder with its README.md."""
        return self.folder

    def load(self, model_class: Any, **arguments: Any) -> Any:
        """Load the weights into ``model_class``, and return what ``from_pretrained`` returns."""
        if self.loading is not None:
            return load_weights(model_class, self.folder, local_files_only=True, **{**self.loading, **arguments})
        config = arguments.pop("config", None) or model_class.config_class.from_dict(self.config)
        values = {name: read_tensor(header) for name, header in self.tensors.items()}
        with loading_errors(self.name):
            return load_weights(model_class, None, config=config, state_dict=values, **arguments)

    def result_files(self) -> dict[Path, str]:
        """Weight file of the source -> name of the result's safetensors file for its tensors."""
        files = list(dict.fromkeys(header.file for header in self.tensors.values()))
        if len(files) == 1 and files[0].suffix != ".safetensors":
            return {files[0]: WEIGHTS}
        return {file: f"{file.stem}.safetensors" for file in files}

    def write_beside(self, folder: Path, result: ResultInfo) -> list[str]:
        """Write the source's files other than model, config and tokenizer. Returns the names of those in the result's folder."""
        return []

    def training_hint(self, max_length: int) -> str | tuple[str, ...] | None:
        """How to train a result. A task of ``longattn train`` with its arguments, or advice with ``{model}`` for the result's name.
        ``None`` means that the model's head determines the task."""
        return None


def tower_prefix(name: str) -> str:
    """Prefix of a tower's tensors in the files of the whole model, such as "text_model."."""
    return f"{name}_model."


def tower_of(source: Source, name: str, class_name: str) -> Source:
    """The tower ``name`` of a source, as a model of the class ``class_name``."""
    prefix, config = tower_prefix(name), source.config.get(tower_field(name)) or {}
    tensors = {key.removeprefix(prefix): header for key, header in source.tensors.items() if key.startswith(prefix)}
    return replace(source, config={**config, "architectures": [class_name]}, tensors=tensors, loading=None, tower=name)


@dataclass(frozen=True)
class SourceRequest:
    """A request to open a checkpoint.

    name: what the user typed.
    path: the file or folder that it names, if there is one.
    revision, token: of a Hub repository.
    headers_only: the values of the tensors will not be read, so that the Hub need not send them.
    weights: a folder with the weights as safetensors, if the checkpoint has only .bin files.
    remote_headers: returns the headers of a repository's safetensors files, if the weights were not downloaded.
    """

    name: str
    path: Path
    revision: str | None = None
    token: str | bool | None = field(default=None, repr=False)
    headers_only: bool = False
    weights: Path | None = None
    remote_headers: Callable[[], dict[str, TensorHeader]] | None = None


class SourceFormat(ABC):
    """One kind of checkpoint. Formats are asked in the order of their priority, and the first that recognises a request opens it."""

    name: ClassVar[str]
    priority: ClassVar[int] = 100
    """Higher priorities are asked first. This package's formats are below the default; ``folder``, which takes any folder, has 0."""
    files: ClassVar[tuple[str, ...]] = ()
    """Patterns of the weight files in a folder. Files that are links to a place outside the folder are refused before `open` is called."""

    markers: ClassVar[tuple[str, ...]] = ()
    """Names of files that only folders of this format have."""

    def recognises(self, request: SourceRequest) -> bool:
        """Whether this is such a checkpoint: by default, whether it has one of the ``markers``."""
        return any((request.path / name).is_file() for name in self.markers)

    @abstractmethod
    def open(self, request: SourceRequest) -> Source:
        """Read the config and the headers of the tensors. Their values are read later, one at a time.

        Raises:
            CheckpointError: the message says in one sentence what is wrong and what to do.
        """


FORMATS: dict[str, SourceFormat] = {}


def register_source(name: str) -> Callable[[F], F]:
    """Class decorator that makes a :class:`SourceFormat` known under ``name``.

    Raises:
        RegistrationError: it is not a SourceFormat, lacks a method, or the name is taken.
    """

    def register(cls: F) -> F:
        check_registration("source", name, cls, SourceFormat, type(FORMATS[name]) if name in FORMATS else None)
        cls.name = name
        FORMATS[name] = cls()
        return cls

    return register


def open_source(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    headers_only: bool = False,
    weights: Path | None = None,
) -> Source:
    """Open a checkpoint in any of the formats. Reads its config and the headers of its tensors.

    Args:
        source: a file, a folder, or a Hub repository id such as "google-bert/bert-base-uncased".
        revision, token: of the Hub repository, which is first downloaded into the Hub cache.
        headers_only: of a Hub repository, fetch the headers of the weight files instead of the files.
        weights: a folder with the weights as safetensors, if the checkpoint has only .bin files.

    Raises:
        CheckpointError: missing, without config or weights, only pickle files, an adapter, damaged, quantised, or unreachable.
    """
    check_name(str(source))
    check_revision(str(source), revision)
    path = Path(source).expanduser()
    return open_request(SourceRequest(str(source), path, revision, token, headers_only, weights))


def has_safetensors(folder: Path) -> bool:
    """Whether a folder has weights as transformers saves them."""
    return any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def open_request(request: SourceRequest) -> Source:
    """Open a request by the first format that recognises it.

    Args:
        request: what is to be opened; a format may pass on a changed one (a folder that it downloaded).

    Raises:
        CheckpointError: no format recognises the request, or the format that does cannot open it.
    """
    load_modules("conversion.sources")
    if request.path.is_dir():
        patterns = [pattern for entry in FORMATS.values() for pattern in entry.files]
        check_files(request.path, (*SIDECARS, "README.md", *patterns), SIDECAR_FOLDERS)
    for entry in sorted(FORMATS.values(), key=lambda entry: (-entry.priority, entry.name)):
        if entry.recognises(request):
            return entry.open(request)
    if request.path.is_file():
        raise CheckpointError(f"{request.name!r} is a file; give the folder that holds config.json and {WEIGHTS}.")
    raise CheckpointError(NO_FOLDER.format(request.name))
