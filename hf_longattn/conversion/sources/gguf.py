"""A GGUF file as a source: config, tokenizer and names by transformers' own GGUF reading, values one tensor at a time."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import CheckpointError
from ..files.tensors import SAFETENSORS_DTYPES, TensorHeader
from ..quiet import quiet_libraries
from .base import Source

__all__ = ["open_gguf"]

KEPT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""GGUF types that hold plain values; the others hold blocks, which are unpacked to fp32."""

SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@quiet_libraries()
def open_gguf(name: str, files: Sequence[Path]) -> Source:
    """Open a GGUF file: its config and tokenizer are written into a temporary folder, which lives as long as the source.

    Args:
        name: what the user typed.
        files: the file, or all GGUF files of the folder that was typed.

    Raises:
        CheckpointError: several files, the gguf package is missing, the file is damaged, or transformers cannot read its architecture.
    """
    if len(files) > 1:
        raise CheckpointError(f"{name!r} holds {len(files)} GGUF files; name the one to convert, for example {str(files[0])!r}.")
    file = files[0].absolute()
    if SPLIT.search(file.name):
        raise CheckpointError(f"{file.name!r} is one part of a split GGUF file; join the parts first with llama-gguf-split --merge.")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise CheckpointError("GGUF files are read with the gguf package: pip install 'hf-longattn[gguf]'.") from error
    try:
        reader: Any = GGUFReader(file)
    except Exception as error:  # the reader raises what numpy and struct happen to raise on damaged bytes
        raise CheckpointError(f"{str(file)!r} is not a whole GGUF file ({_line(error)}); download or copy it again.") from error
    held = _Folder()
    folder = held.path
    (folder / file.name).symlink_to(file)
    try:
        config, skeleton = _skeleton(folder, file.name)
        _save_tokenizer(reader, folder, file.name)
        tensors = _headers(reader, file, config, skeleton)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises what its readers happen to raise
        raise CheckpointError(f"transformers cannot read {str(file)!r}: {_line(error)}.") from error
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Source(name, folder, config, tensors, {"gguf_file": file.name}, origin=file, held=held)


class _Folder:
    """A temporary folder that goes when this object does."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="longattn-gguf-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _skeleton(folder: Path, file: str) -> tuple[dict[str, Any], nn.Module]:
    """The config as transformers reads it, and the language model of its architecture without storage."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    values = json.loads(config.to_json_string(use_diff=False))
    for unset in ("_name_or_path", "transformers_version", "quantization_config"):
        values.pop(unset, None)
    return {**values, "architectures": [type(skeleton).__name__], "dtype": "float32"}, skeleton


def _save_tokenizer(reader: Any, folder: Path, file: str) -> None:
    if "tokenizer.ggml.model" not in reader.fields:
        return
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(folder)


def _headers(reader: Any, file: Path, config: dict[str, Any], skeleton: nn.Module) -> dict[str, TensorHeader]:
    """Every tensor of the file under the name and in the shape that it has in transformers."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
    names = get_gguf_hf_weights_map(skeleton, processor)
    shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    headers = {}
    for packed in reader.tensors:
        if packed.name not in names:
            raise CheckpointError(
                f"{file.name!r} holds the tensor {packed.name!r}, which transformers does not read from GGUF, so that its model would be"
                " another one; convert the checkpoint that the file was made from."
            )
        name = names[packed.name]
        dtype = KEPT_DTYPES.get(packed.tensor_type.name, torch.float32)
        values = partial(_values, file, packed.name, packed.data_offset, packed.data.shape, packed.data.dtype, packed.tensor_type)
        loaded = partial(_as_transformers, values, processor, packed.name, name, dtype)
        headers[name] = TensorHeader(name, file, SAFETENSORS_DTYPES[dtype], shapes[name], values=loaded)
    return headers


def _values(file: Path, name: str, start: int, shape: tuple[int, ...], dtype: Any, kind: Any) -> np.ndarray:
    """One tensor of the file, unpacked; read and not mapped, so that nothing of the file stays in memory."""
    from gguf import dequantize

    packed = np.fromfile(file, dtype=dtype, count=int(np.prod(shape)), offset=start)
    if packed.size != np.prod(shape):
        raise CheckpointError(f"{str(file)!r} ends inside the tensor {name!r}; download or copy it again.")
    return dequantize(packed.reshape(shape), kind)


def _as_transformers(values: Any, processor: Any, packed_name: str, name: str, dtype: torch.dtype) -> Tensor:
    """The values in the order of transformers, by its own processor of the architecture."""
    parsed: dict[str, Any] = {"tensors": {}}  # where a processor puts what it renames
    found = processor.process(weights=values(), name=packed_name, tensor_key_mapping={packed_name: name}, parsed_parameters=parsed)
    put = parsed["tensors"].get(name)
    return (put if put is not None else torch.from_numpy(np.ascontiguousarray(found.weights))).to(dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
