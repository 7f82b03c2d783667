"""A repository of the Hub. Its small files are downloaded and, for a plan, only the headers of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from ...errors import CheckpointError
from ...hub_errors import DOWNLOAD, HUB_ID, NO_FOLDER, check_revision, translated_errors
from ...loading import has_pickles, only_pickles
from ...reading import check_name
from ..tensor_files import TORCH_DTYPES, TensorHeader
from .base import SIDECARS, Source, SourceFormat, SourceRequest, open_request, register_source

SMALL = (*SIDECARS, "README.md")
WEIGHTS = "*.safetensors"


@register_source("hub")
class Hub(SourceFormat):
    """A Hub name such as "google-bert/bert-base-uncased", if there is no such folder. The downloaded files are opened as a folder."""

    priority = 90

    def recognises(self, request: SourceRequest) -> bool:
        return not request.path.exists() and HUB_ID.fullmatch(request.name) is not None

    def open(self, request: SourceRequest) -> Source:
        whole = request.weights is None and not request.headers_only
        folder = fetch_snapshot(request, (*SMALL, WEIGHTS) if whole else SMALL)
        if whole and not any(folder.glob(WEIGHTS)) and has_pickles(request.name, request.revision, request.token):
            raise CheckpointError(only_pickles(request.name))
        headers = partial(fetch_headers, request, folder) if request.headers_only else None
        return open_request(replace(request, path=folder, remote_headers=headers))


def fetch_snapshot(request: SourceRequest, patterns: Sequence[str]) -> Path:
    """Download matching files of a repository into the Hub cache. Returns their folder.

    Raises:
        CheckpointError: no such repository, no access, or no connection.
    """
    with translated_errors(request.name, request.token, DOWNLOAD):
        folder = snapshot_download(request.name, revision=request.revision, token=request.token, allow_patterns=list(patterns))
    return Path(folder)


def fetch_model(model: str | Path, revision: str | None = None, token: str | bool | None = None, *, weights: bool = False) -> Path:
    """The folder ``model``, or that of a Hub repository in the cache, with its weights if requested.

    Raises:
        CheckpointError: no such folder or repository, no access, or no connection.
    """
    name, folder = str(model), Path(model).expanduser()
    check_name(name)
    check_revision(name, revision)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name!r} is a file; give the folder of a checkpoint, or a Hub repository id.")
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(NO_FOLDER.format(name))
    request = SourceRequest(name, Path(name), revision, token)
    return fetch_snapshot(request, (*SMALL, WEIGHTS) if weights else SMALL)


def fetch_headers(request: SourceRequest, folder: Path) -> dict[str, TensorHeader]:
    """The headers of a repository's safetensors files, by range requests of some kilobytes each."""
    with translated_errors(request.name, request.token, DOWNLOAD):
        try:
            metadata = HfApi(token=request.token).get_safetensors_metadata(request.name, revision=request.revision)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            if isinstance(error, NotASafetensorsRepoError) and has_pickles(request.name, request.revision, request.token):
                raise CheckpointError(only_pickles(request.name)) from error
            raise CheckpointError(
                f"{request.name!r} has no readable safetensors weights on the Hub; download it and give its folder."
            ) from error
    headers = {}
    for file, content in metadata.files_metadata.items():
        for name, info in content.tensors.items():
            if info.dtype not in TORCH_DTYPES:
                raise CheckpointError(
                    f"Tensor {name!r} of {request.name!r} has the dtype {info.dtype}, which is not supported; save it in another dtype."
                )
            headers[name] = TensorHeader(name, folder / file, TORCH_DTYPES[info.dtype], tuple(info.shape))
    return headers
