"""Run models whose weights stay in their files: each tensor is read when it is used and released afterwards.

The disk offload of ``from_pretrained(device_map="disk")`` cannot be used instead. It needs accelerate, copies weights that are not in
safetensors files, and loads them in hooks on the forward pass of the module that owns them, which miss a parameter that another module
reads (DeBERTa's table of relative positions, the parameters of mechanisms).
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..errors import CheckpointError
from ..private_apis import replace_parameters, with_loader
from .report import MEASURED, SKIPPED, Check
from .tensor_files import TensorHeader, read_blocks, read_headers, read_tensor

ANY_FILE = "model.safetensors"
"""The file name that transformers is given for every tensor; it never opens it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, rounded to a dtype before it is used in fp32."""

    header: TensorHeader
    rounded: torch.dtype

    def read(self) -> Tensor:
        """Its values in fp32 (integers unchanged), read block by block."""
        header = self.header
        if not header.dtype.is_floating_point:
            return read_tensor(header)
        if header.start is None or header.dtype == self.rounded == torch.float32:
            return read_tensor(header).to(self.rounded).float()
        values, done = torch.empty(header.numel, dtype=torch.float32), 0
        for block in read_blocks(header):
            part = torch.frombuffer(block, dtype=header.dtype).to(self.rounded)
            values[done : done + part.numel()] = part
            done += part.numel()
        return values.view(header.shape)


class WeightsInFiles:
    """The weights of one model, in files of any source format.

        weights = WeightsInFiles(source.tensors, scratch)
        model = weights.loading(BertModel).from_pretrained(folder)
        weights.give_to(model)

    transformers maps tensors to parameters as for disk offload, and writes what it computes from several tensors into the scratch folder.
    Parameters that are in no file are initialised as usual and stay in memory. The others are read each time a module accesses them.

    Args:
        tensors: the headers of all tensors by their names in the files.
        scratch: an empty folder that lives as long as the model.
    """

    def __init__(self, tensors: Mapping[str, TensorHeader], scratch: Path) -> None:
        self.tensors, self.scratch = tensors, scratch
        self.index: dict[str, dict[str, str]] = {}

    def loading(self, model_class: Any) -> Any:
        """`model_class` with a `from_pretrained` that leaves the weights in their files."""

        def load(original: Callable[..., Any], model: Any, state_dict: Any, checkpoint_files: Any, config: Any, *more: Any) -> Any:
            read = {name: _WhileLoading(StoredTensor(header, config.dtype)) for name, header in self.tensors.items()}
            for name in self.tensors.keys() - _needed(model, self.tensors, config.weight_mapping or ()):
                read[name].needed = False
            changed = dataclasses.replace(
                config,
                device_map={"": "disk"},
                disk_offload_folder=str(self.scratch),
                sharded_metadata={"weight_map": dict.fromkeys(self.tensors, ANY_FILE)},
            )
            info, self.index = original(model, read, [ANY_FILE], changed, *more)
            return info, None

        return with_loader(model_class, load)

    def give_to(self, model: nn.Module, in_memory: str | None = None) -> None:
        """Read every parameter of a loaded model that has no values from its file, when it is accessed.

        Args:
            model: from `from_pretrained` of the class that `loading` returned.
            in_memory: parameters with this in their names are read at once.

        Raises:
            CheckpointError: the file's tensor has another shape.
        """
        for prefix, module in model.named_modules():
            later = {}
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if not parameter.is_meta:
                    continue
                full = f"{prefix}.{name}".removeprefix(".")
                stored = self._stored(full, tuple(parameter.shape))
                if in_memory is not None and in_memory in full:
                    setattr(module, name, nn.Parameter(stored.read(), requires_grad=False))
                else:
                    later[name] = stored
            if later:
                replace_parameters(module, partial(_FileParameters, stored=later))

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        entry = self.index[name]
        file, key = Path(entry["safetensors_file"]), entry["weight_name"]
        header = read_headers(file)[key] if file.parent == self.scratch else self.tensors[key]
        if header.shape != shape:
            raise CheckpointError(f"Tensor {key!r} of {str(header.file)!r} has the shape {header.shape}, but its model asks for {shape}.")
        return StoredTensor(header, getattr(torch, entry["dtype"]))


def _needed(model: Any, names: Iterable[str], mapping: Sequence[Any]) -> set[str]:
    """The tensors whose values are needed for loading: buffers, those that others are computed from, and unknown names."""
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    state, buffers = model.state_dict(), {name for name, _ in model.named_buffers()}
    found = {name: rename_source_key(name, renamings, converters, model.base_model_prefix, state) for name in names}
    return {name for name, (target, pattern) in found.items() if pattern is not None or target not in state or target in buffers}


@dataclass
class _WhileLoading:
    """Replaces a tensor in a file while transformers loads a model; slicing reads it."""

    stored: StoredTensor
    needed: bool = True

    def __getitem__(self, _: Any) -> Tensor:
        return self.stored.read() if self.needed else torch.tensor(torch.nan).expand(self.stored.header.shape)


class _FileParameters(dict[str, Any]):
    """The parameters of one module: access by name reads from the file, iteration gives tensors without values."""

    def __init__(self, parameters: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
        super().__init__(parameters)
        self.stored = stored

    def __getitem__(self, name: str) -> Any:
        stored = self.stored.get(name)
        return super().__getitem__(name) if stored is None else nn.Parameter(stored.read(), requires_grad=False)


IN_MEMORY = 1e9
"""Bytes in fp32 up to which a model is loaded whole (250 million parameters); reading a larger one from its files is hardly slower."""
SHARE = 0.5
"""Share of the free memory that a model loaded whole may take."""
LOADING = 1.2
"""Memory of a model loaded whole, relative to its weights in fp32."""
WORK = 4e8
"""Bytes for activations and outputs when a model runs from its files."""
UNKNOWN = 4 * 10**9
"""Free bytes assumed if the system does not say."""
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Running:
    """How source and result are run, one after the other, in fp32.

    bytes: of each in fp32.
    largest: bytes of the largest tensor in fp32.
    from_files: the weights stay in their files.
    why_not: why they cannot be run; empty if they can.
    """

    bytes: int
    largest: int
    from_files: bool
    why_not: str = ""

    def check(self) -> Check:
        """The check of the report that says how."""
        values = {"fp32_bytes": self.bytes, "largest_tensor_bytes": self.largest, "from_files": self.from_files}
        if self.why_not:
            return Check("outputs", SKIPPED, f"the models were not run: {self.why_not}", values)
        each = f"source and result, {_size(self.bytes)} each in fp32, ran one after the other"
        how = f"with the weights in their files, one tensor in memory at a time, the largest {_size(self.largest)}"
        return Check("how the models were run", MEASURED, f"{each}, {how if self.from_files else 'whole in memory'}", values)

    @contextlib.contextmanager
    def scratch(self, folder: Path) -> Iterator[Path | None]:
        """A temporary folder in `folder` for computed tensors; `None` for models in memory."""
        if not self.from_files:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as made:
            yield Path(made)


def choose_running(parameters: int, largest: int, *, whole: bool = False) -> Running:
    """From their files, unless a model takes at most `IN_MEMORY` bytes and half of the free memory; not at all if the largest tensor
    does not fit into memory twice, with activations and outputs.

    Args:
        parameters: of the larger of the two models.
        largest: elements of its largest tensor.
        whole: it must be loaded whole.
    """
    size, tensor, available = 4 * parameters, 4 * largest, available_memory()
    loaded = size * LOADING
    if whole or (size <= IN_MEMORY and loaded <= SHARE * available):
        why = f"a model takes {_size(loaded)} in fp32 and {_size(available)} are free" if loaded > available else ""
        return Running(size, tensor, False, why)
    needed = 2 * tensor + WORK
    why = f"the largest tensor of {_size(tensor)} in fp32 and what is computed take {_size(needed)} and {_size(available)} are free"
    return Running(size, tensor, True, why if needed > available else "")


def available_memory() -> int:
    """Bytes that this process can still allocate: the machine's free memory, or the limit of its control group (a container)."""
    free = _free()
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit ("max")
        path = next(line.partition("::")[2] for line in _text(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::"))
        group = GROUPS / path.strip("/")
        limit, used = int(_text(group / "memory.max")), int(_text(group / "memory.current"))
        counts = dict(line.split() for line in _text(group / "memory.stat").splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])
        return max(0, min(free, limit - used + cached))
    return free


def _free() -> int:
    """Free bytes of the machine, from Linux, or from psutil if it is installed."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in _text(Path("/proc/meminfo")).splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    try:
        import psutil
    except ImportError:
        return UNKNOWN
    return int(psutil.virtual_memory().available)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _size(count: Any) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
