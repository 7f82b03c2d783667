"""Models whose weights stay in their files: each tensor is read when it is used, and gone afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..errors import CheckpointError
from .report import MEASURED, SKIPPED, Check
from .tensor_files import TensorHeader, read_blocks, read_headers, read_tensor

ANY_FILE = "model.safetensors"
"""What transformers is told that tensors are in, so that it leaves them there; it opens no such file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, which is rounded to a dtype before it is used in fp32."""

    header: TensorHeader
    rounded: torch.dtype

    def read(self) -> Tensor:
        """Its values in fp32 (integers as they are); besides them, one block of the file is in memory at a time."""
        header = self.header
        if not header.torch_dtype.is_floating_point:
            return read_tensor(header)
        if header.start is None or header.torch_dtype == self.rounded == torch.float32:
            return read_tensor(header).to(self.rounded).float()
        values, done = torch.empty(header.numel, dtype=torch.float32), 0
        for block in read_blocks(header):
            part = torch.frombuffer(block, dtype=header.torch_dtype).to(self.rounded)
            values[done : done + part.numel()] = part
            done += part.numel()
        return values.view(header.shape)


class WeightsInFiles:
    """The weights of one model, in files of any kind that a source can have.

        weights = WeightsInFiles(source.tensors, scratch)
        model = weights.loading(BertModel).from_pretrained(folder)
        weights.give_to(model)

    transformers itself finds out, as for a model that it offloads to the disk, which tensor is which parameter; what it computes from
    tensors (longer tables of positions) it writes into the scratch folder. Parameters that no file holds begin as they always do and
    stay in memory. The model then reads a parameter each time that a module asks for it, also where it is used outside the forward pass
    of the module that it is in, which hooks on that pass do not see (DeBERTa's table of relative positions, states of mechanisms).

    Args:
        tensors: the headers of all tensors by name, as the files call them.
        scratch: an empty folder that lives as long as the model.
    """

    def __init__(self, tensors: Mapping[str, TensorHeader], scratch: Path) -> None:
        self.tensors, self.scratch = tensors, scratch
        self.index: dict[str, dict[str, str]] = {}

    def loading(self, model_class: Any) -> Any:
        """`model_class` with a `from_pretrained` that leaves the weights where they are."""

        def load(model: Any, state_dict: Any, checkpoint_files: Any, config: Any, *more: Any) -> Any:
            read = {name: _WhileLoading(StoredTensor(header, config.dtype)) for name, header in self.tensors.items()}
            for name in self.tensors.keys() - _needed(model, self.tensors, config.weight_mapping or ()):
                read[name].needed = False
            changed = dataclasses.replace(
                config,
                device_map={"": "disk"},
                disk_offload_folder=str(self.scratch),
                sharded_metadata={"weight_map": dict.fromkeys(self.tensors, ANY_FILE)},
            )
            info, self.index = model_class._load_pretrained_model(model, read, [ANY_FILE], changed, *more)
            return info, None

        own = {"__module__": model_class.__module__, "_load_pretrained_model": staticmethod(load)}
        return type(model_class.__name__, (model_class,), own)

    def give_to(self, model: nn.Module, in_memory: str | None = None) -> None:
        """Let every parameter of a loaded model that has no values be read from its file.

        Args:
            model: from `from_pretrained` of the class that `loading` gave.
            in_memory: parameters with this in their names are read now.

        Raises:
            CheckpointError: the file's tensor has another shape.
        """
        for prefix, module in model.named_modules():
            later = {}
            for name, parameter in list(module._parameters.items()):
                if parameter is None or not parameter.is_meta:
                    continue
                full = f"{prefix}.{name}".removeprefix(".")
                stored = self._stored(full, tuple(parameter.shape))
                if in_memory is not None and in_memory in full:
                    module._parameters[name] = nn.Parameter(stored.read(), requires_grad=False)
                else:
                    later[name] = stored
            if later:
                module._parameters = _FileParameters(module._parameters, later)

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        entry = self.index[name]
        file, key = Path(entry["safetensors_file"]), entry["weight_name"]
        header = read_headers(file)[key] if file.parent == self.scratch else self.tensors[key]
        if header.shape != shape:
            raise CheckpointError(f"Tensor {key!r} of {str(header.file)!r} has the shape {header.shape}, but its model asks for {shape}.")
        return StoredTensor(header, getattr(torch, entry["dtype"]))


def _needed(model: Any, names: Iterable[str], mapping: Sequence[Any]) -> set[str]:
    """The tensors whose values loading needs: those that others are computed from, and buffers, which stay in memory; also those that
    transformers may know by another name than it says."""
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    state, buffers = model.state_dict(), {name for name, _ in model.named_buffers()}
    found = {name: rename_source_key(name, renamings, converters, model.base_model_prefix, state) for name in names}
    return {name for name, (target, pattern) in found.items() if pattern is not None or target not in state or target in buffers}


@dataclass
class _WhileLoading:
    """What stands for a tensor of a file while transformers loads a model: it is sliced to be read."""

    stored: StoredTensor
    needed: bool = True

    def __getitem__(self, _: Any) -> Tensor:
        return self.stored.read() if self.needed else torch.tensor(torch.nan).expand(self.stored.header.shape)


class _FileParameters(dict[str, Any]):
    """The parameters of one module. Those that are in files are read whenever one is asked for by name; a walk through all of them, as
    for their shapes, gives tensors without values."""

    def __init__(self, parameters: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
        super().__init__(parameters)
        self.stored = stored

    def __getitem__(self, name: str) -> Any:
        stored = self.stored.get(name)
        return super().__getitem__(name) if stored is None else nn.Parameter(stored.read(), requires_grad=False)


IN_MEMORY = 1e9
"""Bytes in fp32 up to which a model is loaded whole (250 million parameters): a larger one costs little more time from its files."""
SHARE = 0.5
"""Of the free memory that a model loaded whole may take."""
LOADING = 1.2
"""Memory of a model loaded whole, beside its weights in fp32."""
WORK = 4e8
"""Bytes for activations and outputs when a model runs from its files; the lengths at which it is checked are chosen by it."""
UNKNOWN = 4 * 10**9
"""Bytes taken to be free where nothing says how many are."""
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Running:
    """How source and result are run, one after the other, in fp32.

    bytes: of each in fp32.
    largest: bytes of the largest tensor in fp32.
    from_files: the weights stay in their files, and each tensor is read when it is used.
    why_not: why they cannot be run at all; empty where they can.
    """

    bytes: int
    largest: int
    from_files: bool
    why_not: str = ""

    def check(self) -> Check:
        """The line of the report that says it."""
        values = {"fp32_bytes": self.bytes, "largest_tensor_bytes": self.largest, "from_files": self.from_files}
        if self.why_not:
            return Check("outputs", SKIPPED, f"the models were not run: {self.why_not}", values)
        each = f"source and result, {_size(self.bytes)} each in fp32, ran one after the other"
        how = f"with the weights in their files, one tensor in memory at a time, the largest {_size(self.largest)}"
        return Check("how the models were run", MEASURED, f"{each}, {how if self.from_files else 'whole in memory'}", values)

    @contextlib.contextmanager
    def scratch(self, folder: Path) -> Iterator[Path | None]:
        """A folder in `folder` for tensors that are computed from several of a file; `None` for models in memory."""
        if not self.from_files:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as made:
            yield Path(made)


def choose_running(parameters: int, largest: int, *, whole: bool = False) -> Running:
    """From their files, unless a model takes no more than `IN_MEMORY` bytes and half of the memory that is free; not at all where not
    even the largest tensor fits twice, beside activations and outputs.

    Args:
        parameters: of the larger of the two models.
        largest: how many numbers its largest tensor has.
        whole: it has to be loaded whole.
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
    """Bytes that this process can still take: what the machine has free, or less where its control group (a container) allows less."""
    free = _free()
    with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit in them ("max")
        path = next(line.partition("::")[2] for line in _text(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::"))
        group = GROUPS / path.strip("/")
        limit, used = int(_text(group / "memory.max")), int(_text(group / "memory.current"))
        counts = dict(line.split() for line in _text(group / "memory.stat").splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])
        return max(0, min(free, limit - used + cached))
    return free


def _free() -> int:
    """Bytes that the machine has free, as Linux says it; elsewhere as psutil does, which accelerate brings along, or not at all."""
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
