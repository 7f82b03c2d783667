"""A GGUF file. transformers reads config, tokenizer, names and layouts; values are read one tensor at a time.

transformers' own loader holds the whole model: for a file of 444 MiB (Q8_0, 438 million parameters) it takes 1,843 MiB, or 1,091 MiB in
bf16, and 45 seconds. One tensor at a time takes 733 MiB, four times the largest tensor in fp32, and 22 seconds. So its processors of single
tensors are used, which are private; if a version of transformers lacks them, GGUF files are refused.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
    """A GGUF file with its config and tokenizer in a temporary folder. The folder lives as long as the source."""

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
        reader = _open_reader(file)
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


MOST_VALUES = 5_000_000
"""Maximum number of values in a header, such as the tokens of a vocabulary. Untuned."""
COUNTS = ("block_count", "expert_count")
"""Endings of the keys that count parts of a model."""


def _open_reader(file: Path) -> Any:
    """The gguf package's reader of a file, which looks at the header only.

    Raises:
        CheckpointError: not a GGUF file, damaged, without tensors, or with counts that exceed its tensors.
    """
    with needs_extra("gguf"):
        from gguf import GGUFReader

    class Reader(GGUFReader):
        """Ends at the end of the file. The package trusts counts, and would read empty values up to 2^64 times."""

        count = 0

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            values = super()._get(offset, dtype, count, override_order)
            self.count += 1
            if len(values) < int(count) or self.count > MOST_VALUES:
                raise ValueError("it ends inside its header" if len(values) < int(count) else f"more than {MOST_VALUES:,} values")
            return values

    try:
        reader: Any = Reader(file)
    except Exception as error:  # on damaged bytes the reader raises any type of error
        raise CheckpointError(f"{str(file)!r} is not a whole GGUF file ({_line(error)}); download or copy it again.") from error
    if not (tensors := len(reader.tensors)):
        raise CheckpointError(f"{str(file)!r} holds only metadata and no tensors; download the file with the weights.")
    for key, field in reader.fields.items():
        if key.endswith(COUNTS) and isinstance(value := field.contents(), int) and value > max(MOST_LAYERS, tensors):
            raise CheckpointError(f"{str(file)!r} says {key}={value}, which is more than its {tensors} tensors allow; download it again.")
    return reader


class _Folder:
    """A temporary folder that is removed with this object."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="longattn-gguf-"))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _skeleton(folder: Path, file: str) -> tuple[dict[str, Any], nn.Module]:
    """The config as transformers reads it, and its language model on the meta device."""
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
    """Refuse scaled rotary positions that are not in the config. transformers' reader may read only the base."""
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
    """One tensor of the file, unpacked. The file is read, not mapped, so that it does not stay in memory."""
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
