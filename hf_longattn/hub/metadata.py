"""Metadata of model cards. Inheritance from the source's card, and the check that it can be read back."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, HTTPError

from ..errors import CheckpointError, LongAttentionError, OptionError, checkpoint_errors
from ..files import read_text

KEPT = ("license", "license_name", "license_link", "language", "datasets", "tags")
"""Metadata that a converted model inherits from its source. Results are not among them: they were measured on another model."""
LISTED = ("language", "datasets", "tags", "base_model")
"""Fields whose value may be a list."""
IDENTIFIER = re.compile(r"(?=.*[a-z])[a-z0-9][a-z0-9.+-]*", re.IGNORECASE)
"""Identifier of a licence on the Hub, for example mit or 0bsd; it has at least one letter."""
TAG = re.compile(r"\w[\w .:/+-]*")
FORMATS = frozenset((
    "coreml", "flax", "gguf", "jax", "keras", "mlx", "onnx", "openvino", "pytorch", "rust", "safetensors", "tensorflow", "tf", "tf-keras",
    "tflite", "torch", "transformers",
))  # fmt: skip
"""Tags that name a file format. They describe the source's files, so a converted model does not inherit them."""


def inherited_metadata(card: str | Path) -> dict[str, Any]:
    """Fields of a ``README.md``'s front matter that are in :data:`KEPT`. Without tags in :data:`FORMATS`, and with ``base_model``.

    Warns if the card cannot be read, and returns no metadata then. Fields of an unexpected type are left out with a warning.
    """
    try:
        data = read_card(Path(card)).data.to_dict()
    except CheckpointError as error:
        warnings.warn(f"{error} No metadata is taken from it.", stacklevel=2)
        return {}
    fields = {name: data[name] for name in (*KEPT, "base_model") if data.get(name)}
    for name, value in list(fields.items()):
        listed = name in LISTED and isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        if not isinstance(value, str) and not listed:
            expected = "text or a list of text" if name in LISTED else "text"
            warnings.warn(f"{str(card)!r} says {name}: {value!r}, which must be {expected}; it is ignored.", stacklevel=2)
            del fields[name]
    if "tags" in fields:
        tags = [fields["tags"]] if isinstance(fields["tags"], str) else fields["tags"]
        fields["tags"] = [tag for tag in tags if tag.lower() not in FORMATS]
    return fields


def read_card(path: Path) -> ModelCard:
    """The card in a file.

    Raises:
        CheckpointError: the file or its metadata cannot be read.
    """
    text = read_text(path)
    with checkpoint_errors(f"The metadata of {str(path)!r} cannot be read"):
        card = ModelCard(text, ignore_metadata_errors=False)
        str(card).encode()  # YAML escapes can encode half a surrogate pair
        return card


def source_card(source: str | Path) -> Path | None:
    """Path of the ``README.md`` of a folder or a cached Hub repository. Else ``None``."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / "README.md" if (folder / "README.md").is_file() else None
    try:
        cached = try_to_load_from_cache(str(source), "README.md")
    except HFValidationError:  # the path of a folder that no longer exists
        return None
    return Path(cached) if isinstance(cached, str) else None


def fetch_card(repo_id: str) -> None:
    """Download the card of a Hub repository into the Hub cache. Errors, such as a missing card, are ignored."""
    with contextlib.suppress(OSError, ValueError, HTTPError):  # without it, no metadata is inherited
        hf_hub_download(repo_id, "README.md")


def check_stated(stated: Mapping[str, Any]) -> None:
    """Refuse a licence or a tag that the Hub does not accept.

    Raises:
        OptionError: the licence or a tag has a wrong form; the message has an example of a right one.
    """
    if (license := stated.get("license")) and not IDENTIFIER.fullmatch(license):
        raise OptionError(f"{license!r} is not the identifier of a licence; give one, for example --license apache-2.0.")
    if (wrong := next((tag for tag in stated.get("tags") or () if not TAG.fullmatch(tag)), None)) is not None:
        raise OptionError(f"{wrong!r} is not a tag; give letters and digits, for example --tag legal.")


def with_inherited(stated: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """``stated`` completed by ``inherited``. Tags are merged; a stated licence replaces the inherited one, with its name and link."""
    states_license = stated.get("license") is not None
    rest = {name: value for name, value in inherited.items() if not (states_license and name.startswith("license"))}
    merged = {**rest, **{name: value for name, value in stated.items() if value}}
    merged["tags"] = sorted({*map(str, inherited.get("tags", [])), *stated.get("tags", [])})
    return merged


def check_metadata(text: str, expected: dict[str, Any]) -> None:
    """Read the card's metadata back, as the Hub does. Compares it with what was written.

    Raises:
        LongAttentionError: it cannot be read, or it differs.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LongAttentionError("The card cannot be encoded as UTF-8; check the names and values given for it.") from None
    try:
        read = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except ValueError as error:
        raise LongAttentionError(f"The card's metadata cannot be read back ({error}); check the names and values given for it.") from error
    wrong = sorted(key for key, value in expected.items() if read.get(key) != value)
    if wrong:
        raise LongAttentionError(
            f"The card's metadata changed when it was read back, in {', '.join(wrong)}; check the values given for it."
        )
