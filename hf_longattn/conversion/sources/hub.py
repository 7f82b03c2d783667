"""Fetch a source from the Hub: its small files and, for a plan, only the headers of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from ...errors import CheckpointError
from ...hub_errors import DOWNLOAD, translated_errors
from ..tensor_files import TORCH_DTYPES, TensorHeader
from .base import SIDECARS

READ = (*SIDECARS, "README.md")
WEIGHTS = "*.safetensors"
PICKLED = "pytorch_model*.bin"


def fetch_source(repo_id: str, revision: str | None, token: str | bool | None, *, headers_only: bool, allow_pickle: bool) -> Path:
    """The folder in the Hub cache of everything a conversion reads; pickled weights where that is allowed and there are no others.

    Raises:
        CheckpointError: no such folder or repository, no access, or no connection.
    """
    folder = fetch_snapshot(repo_id, READ if headers_only else (*READ, WEIGHTS), revision, token)
    if allow_pickle and not headers_only and not any(folder.glob(WEIGHTS)):
        fetch_snapshot(repo_id, (PICKLED,), revision, token)
    return folder


def fetch_snapshot(repo_id: str, patterns: Sequence[str], revision: str | None, token: str | bool | None) -> Path:
    """Download the files of a repository that match `patterns` into the Hub cache and return their folder.

    Raises:
        CheckpointError: no such folder or repository, no access, or no connection.
    """
    with translated_errors(repo_id, token, DOWNLOAD):
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(patterns)))


def fetch_headers(repo_id: str, folder: Path, revision: str | None, token: str | bool | None) -> dict[str, TensorHeader]:
    """The headers of a repository's safetensors files, by range requests of some kilobytes each."""
    with translated_errors(repo_id, token, DOWNLOAD):
        try:
            metadata = HfApi(token=token).get_safetensors_metadata(repo_id, revision=revision)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise CheckpointError(f"{repo_id!r} has no readable safetensors weights on the Hub.") from error
    headers = {}
    for file, content in metadata.files_metadata.items():
        for name, info in content.tensors.items():
            if info.dtype not in TORCH_DTYPES:
                raise CheckpointError(f"Tensor {name!r} of {repo_id!r} has the dtype {info.dtype}, which is not supported.")
            headers[name] = TensorHeader(name, folder / file, info.dtype, tuple(info.shape))
    return headers
