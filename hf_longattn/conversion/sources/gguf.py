"""A GGUF file: config, tokenizer and names are read by transformers, values one tensor at a time.

``from_pretrained(gguf_file=...)`` would need the whole model in fp32 (28 GB for 7 billion parameters). Instead transformers' processors of
single tensors are used, which are private; if a version of transformers lacks them, GGUF files are refused.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import tempfile
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import CheckpointError, LongAttentionError, needs_extra
from ...loading import load_part, new_model
from ...private_apis import look_up
from ...reading import MOST_LAYERS, check_counts
from ..tensor_files import TensorHeader
from .base import Source, SourceFormat, SourceRequest, register_source

KEPT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""GGUF types with plain values; the others are quantised and unpacked to fp32."""

NO_VOCABULARY = ("no_vocab", "none")
"""Values of the tokenizer key in files without a vocabulary."""
SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True)
class GgufSource(Source):
    """A GGUF file with its config and tokenizer in a temporary folder, which lives as long as the source."""

    held: _Folder | None = None


@register_source("gguf")
class Gguf(SourceFormat):
    """A .gguf file, or a folder with one .gguf file and no safetensors files."""

    priority = 60
    after_safetensors = True

    def recognises(self, request: SourceRequest) -> bool:
        if request.path.is_file():
            return request.path.suffix == ".gguf"
        return any(request.path.glob("*.gguf"))

    def open(self, request: SourceRequest) -> Source:
        files = [request.path] if request.path.is_file() else sorted(request.path.glob("*.gguf"))
        if len(files) > 1:
            raise CheckpointError(
                f"{request.name!r} holds {len(files)} GGUF files; name the one to convert, for example {str(files[0])!r}."
            )
        file = files[0].absolute()
        if SPLIT.search(file.name):
            raise CheckpointError(f"{file.name!r} is one part of a split GGUF file; join the parts first with llama-gguf-split --merge.")
        with needs_extra("gguf"):
            from gguf import GGUFReader
        _check_header(file)
        try:
            reader: Any = GGUFReader(file)
        except Exception as error:  # on damaged bytes the reader raises any type of error
            raise CheckpointError(f"{str(file)!r} is not a whole GGUF file ({_line(error)}); download or copy it again.") from error
        held = _Folder()
        folder = held.path
        (folder / file.name).symlink_to(file)
        try:
            config, skeleton = _skeleton(folder, file.name)
            _check_rotary(reader, file.name, config)
            _save_tokenizer(reader, folder, file.name)
            tensors = _headers(reader, file, config, skeleton)
        except BaseException as error:
            held.remove()  # a reference to the error would keep this function's variables, and the folder, alive
            if isinstance(error, LongAttentionError) or not isinstance(error, Exception):
                raise
            # transformers' readers raise any type of error
            raise CheckpointError(
                f"transformers cannot read {str(file)!r}: {_line(error)}; convert the checkpoint that it was made from."
            ) from error
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return GgufSource(request.name, folder, config, tensors, {"gguf_file": file.name}, (file,), held)


MOST_KEYS, MOST_ITEMS, MOST_DIMENSIONS = 10_000, 5_000_000, 8
"""Maximum number of keys in a header, of items in a list (a vocabulary), and of dimensions of a tensor."""
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF's number of a scalar type -> its size in bytes."""
TEXT, LIST = 8, 9
COUNTS = ("block_count", "expert_count")
"""Endings of the keys that count parts of a model."""


def _check_header(file: Path) -> None:
    """Refuse a header with counts that exceed the file or its number of tensors, since the gguf package trusts them.

    Raises:
        CheckpointError: not a GGUF file, damaged, without tensors, or with counts that exceed its tensors.
    """
    try:
        with open(file, "rb") as opened:
            counts = _Header(opened, file.stat().st_size).read()
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{str(file)!r} is not a whole GGUF file ({_line(error)}); download or copy it again.") from error
    tensors = counts.pop("tensors")
    if not tensors:
        raise CheckpointError(f"{str(file)!r} holds only metadata and no tensors; download the file with the weights.")
    for key, value in counts.items():
        if value > max(MOST_LAYERS, tensors):
            raise CheckpointError(f"{str(file)!r} says {key}={value}, which is more than its {tensors} tensors allow; download it again.")


class _Header:
    """The header of a GGUF file, read with every count checked against the rest of the file."""

    def __init__(self, opened: BinaryIO, size: int) -> None:
        self.opened, self.size, self.order = opened, size, "<"

    def read(self) -> dict[str, int]:
        """Read the header. Returns the values of the keys with the endings `COUNTS`, and the number of "tensors"."""
        if self.opened.read(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        if self.number(4) & 0xFFFF == 0:
            self.order = ">"
        tensors = self.count(24)
        counts = {"tensors": tensors}
        if (keys := self.number(8)) > MOST_KEYS:
            raise ValueError(f"{keys} keys")
        for _ in range(keys):
            key = self.text().decode("utf-8")
            value = self.value(self.number(4), key)
            if key.endswith(COUNTS) and value is not None:
                counts[key] = value
        for _ in range(tensors):
            self.text()
            dimensions = self.number(4)
            if dimensions > MOST_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            self.skip(8 * dimensions + 4 + 8)
        return counts

    def value(self, kind: int, key: str) -> int | None:
        """Skip a value, and return it if it is an integer."""
        if kind == TEXT:
            self.text()
        elif kind == LIST:
            inner = self.number(4)
            count = self.count(8 if inner == TEXT else SIZES.get(inner, 1))
            if count > MOST_ITEMS or inner not in (TEXT, *SIZES):
                raise ValueError(f"{key!r} is a list of {count} items of type {inner}")
            if inner != TEXT:
                self.skip(count * SIZES[inner])
            else:
                for _ in range(count):
                    self.text()
        elif kind in SIZES:
            is_integer = kind not in (6, 7, 12)
            raw = self.take(SIZES[kind])
            return int.from_bytes(raw, "little" if self.order == "<" else "big") if is_integer else None
        else:
            raise ValueError(f"{key!r} is of unknown type {kind}")
        return None

    def take(self, count: int) -> bytes:
        if count > self.left():
            raise ValueError("it ends inside its header")
        return self.opened.read(count)

    def skip(self, count: int) -> None:
        if count > self.left():
            raise ValueError("it ends inside its header")
        self.opened.seek(count, 1)

    def left(self) -> int:
        return self.size - self.opened.tell()

    def number(self, size: int) -> int:
        """Read an unsigned integer of `size` bytes."""
        return int(struct.unpack(self.order + {4: "I", 8: "Q"}[size], self.take(size))[0])

    def count(self, each: int) -> int:
        """Read a count, and check that this many items of at least `each` bytes fit into the rest of the file."""
        number = self.number(8)
        if number * each > self.left():
            raise ValueError(f"{number} items do not fit into it")
        return number

    def text(self) -> bytes:
        return self.take(self.count(1))


class _Folder:
    """A temporary folder that is removed with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="longattn-gguf-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _skeleton(folder: Path, file: str) -> tuple[dict[str, Any], nn.Module]:
    """The config as transformers reads it, and the language model of its architecture on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = load_part(AutoConfig, folder, gguf_file=file)
    check_counts(config.to_dict(), file)
    with torch.device("meta"):
        skeleton = new_model(AutoModelForCausalLM, config)
    values = json.loads(config.to_json_string(use_diff=False))
    for unset in ("_name_or_path", "transformers_version", "quantization_config"):
        values.pop(unset, None)
    return {**values, "architectures": [type(skeleton).__name__], "dtype": "float32"}, skeleton


def _check_rotary(reader: Any, file: str, config: dict[str, Any]) -> None:
    """Refuse scaled rotary positions that are not in the config, since transformers' reader may read only the base."""
    said = {key.partition(".")[2]: field.contents() for key, field in reader.fields.items() if ".rope.scal" in key}
    kind = said.get("rope.scaling.type", "linear")
    factor = said.get("rope.scaling.factor", said.get("rope.scale_linear", 1.0))
    rope = config.get("rope_parameters") or {}
    if (
        kind == "none"
        or factor == 1.0
        or kind in {settings.get("rope_type") for settings in (rope, *rope.values()) if isinstance(settings, dict)}
    ):
        return
    raise CheckpointError(
        f"{file!r} scales its rotary positions ({kind}, {factor:g} times), which transformers does not read from GGUF, so its model would"
        " differ; convert the checkpoint that the file was made from."
    )


def _save_tokenizer(reader: Any, folder: Path, file: str) -> None:
    model = reader.fields.get("tokenizer.ggml.model")
    if model is None or model.contents() in NO_VOCABULARY:
        return
    from transformers import AutoTokenizer

    load_part(AutoTokenizer, folder, gguf_file=file).save_pretrained(folder)


def _headers(reader: Any, file: Path, config: dict[str, Any], skeleton: nn.Module) -> dict[str, TensorHeader]:
    """The headers of the file's tensors, with their names and shapes in transformers."""
    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    processors, default_processor, names_in = (look_up("gguf_readers", which) for which in range(3))
    processor: Any = processors.get(architecture, default_processor)(config=config)
    names = names_in(skeleton, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    headers = {}
    for packed in reader.tensors:
        if packed.name not in names:
            raise CheckpointError(
                f"{file.name!r} holds the tensor {packed.name!r}, which transformers does not read from GGUF, so its model would"
                " differ; convert the checkpoint that the file was made from."
            )
        name = names[packed.name]
        dtype = KEPT_DTYPES.get(packed.tensor_type.name, torch.float32)
        values = partial(_values, file, packed.name, packed.data_offset, packed.data.shape, packed.data.dtype, packed.tensor_type)
        loaded = partial(_as_transformers, values, processor, packed.name, name, dtype)
        headers[name] = TensorHeader(name, file, dtype, shapes[name], values=loaded)
    return headers


def _values(file: Path, name: str, start: int, shape: tuple[int, ...], dtype: Any, kind: Any) -> np.ndarray:
    """One tensor of the file, unpacked; the file is read, not mapped, so that it does not stay in memory."""
    from gguf import dequantize

    packed = np.fromfile(file, dtype=dtype, count=int(np.prod(shape)), offset=start)
    if packed.size != np.prod(shape):
        raise CheckpointError(f"{str(file)!r} ends inside the tensor {name!r}; download or copy it again.")
    return dequantize(packed.reshape(shape), kind)


def _as_transformers(values: Any, processor: Any, packed_name: str, name: str, dtype: torch.dtype) -> Tensor:
    """The values in the layout of transformers, by its processor for the architecture."""
    parsed: dict[str, Any] = {"tensors": {}}  # for tensors that a processor renames
    processed = processor.process(weights=values(), name=packed_name, tensor_key_mapping={packed_name: name}, parsed_parameters=parsed)
    under_new_name = parsed["tensors"].get(name)
    return (under_new_name if under_new_name is not None else torch.from_numpy(np.ascontiguousarray(processed.weights))).to(dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
