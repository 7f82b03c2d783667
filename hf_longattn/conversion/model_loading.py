"""Load source and result through transformers' classes, and run them. Whole, or with the weights left in their files."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, OptionError, in_a_line
from ..loading import load_weights, loading_errors, tied_weights
from ..modeling.family.definition import known_family
from ..modeling.family.registration import auto_class_name, quiet_torchao
from ..names import missing
from ..reports import MEASURED, SKIPPED, Check
from .architectures import Architecture
from .long_models import decoder_start
from .sources import Source, open_source
from .tensor_files import TensorHeader, read_blocks, read_headers, read_tensor
from .tensor_names import check_complete, names_in_model


def result_class(architecture: Architecture, config: Any) -> Any:
    """The class that loads a result with this config. The Auto class of its head, or else its own class."""
    import transformers

    name = auto_class_name(config, architecture.long_class)
    return getattr(transformers, name) if name else architecture.model_class


def chosen_device(name: str | None) -> torch.device:
    """The device called ``name``; for ``None`` the accelerator, or the CPU if there is none.

    Raises:
        OptionError: there is no such device here.
    """
    if name is None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if device is None else device
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"There is no device {name!r:.40} here ({in_a_line(error, 120)}); leave --device out.") from error


def load_source(
    source: Source, architecture: Architecture, dtype: torch.dtype | None, scratch: Path | None = None
) -> tuple[nn.Module, set[str]]:
    """Load the source with transformers, in fp32. Its weights are rounded to `dtype` first, if given.

    `scratch`: if a folder is given, the weights stay in their files (see `WeightsInFiles`) and are read by this package's readers; tensors
    that are computed from several tensors are written to this folder.

    Returns:
        The model, and the names of parameters that the source lacks.

    Raises:
        CheckpointError: the source does not load, or weights other than the head's are missing.
    """
    import transformers

    model_arguments: dict[str, Any] = {}
    family, name = architecture.family, architecture.source_class
    of_family = name in family.model_classes  # unlike a Longformer or LED
    model_class = family.base_class(name) if of_family else getattr(transformers, name)
    if family.config_class.score_cap is not None:
        model_arguments["attn_implementation"] = "eager"  # SDPA ignores the cap; transformers before 5.23 selects it nevertheless
    if scratch is None:
        model, missing = _load(partial(source.load, model_class), dtype, **model_arguments)
    else:
        config = architecture.source_config if architecture.original_config is None else architecture.original_config
        arguments = {"config": config, "state_dict": {}, **model_arguments}  # transformers must not look for the weights itself
        model, missing = _load_from_files(model_class, None, source.folder, dtype, source.tensors, scratch, **arguments)
    check_complete(missing, model, str(source.folder), architecture.family)
    return model, missing


def load_result(
    folder: Path,
    architecture: Architecture,
    config: Any,
    *,
    scratch: Path | None = None,
    config_instead: Any = None,
) -> tuple[nn.Module, set[str]]:
    """Load the result with the Auto class of its head, in fp32. Returns the model and the names of missing parameters.

    scratch: as in `load_source`. config_instead: a config to use instead of the folder's.
    """
    if architecture.tower is not None and config_instead is None:
        config_instead = config  # the folder's config is the whole model's
    arguments = {} if config_instead is None else {"config": config_instead}
    if scratch is not None:
        tensors = open_source(folder).tensors
        return _load_from_files(architecture.model_class, folder, folder, None, tensors, scratch, **arguments)
    return _load(partial(load_weights, result_class(architecture, config), folder), None, local_files_only=True, **arguments)


def load_as_result(source: Source, architecture: Architecture, config: Any) -> nn.Module:
    """Load the source with the class and config of a result, in fp32. Loading extends its position tables.

    Raises:
        CheckpointError: the source does not load.
    """
    with loading_errors(source.name):
        model: nn.Module = source.load(result_class(architecture, config), config=config, dtype=torch.float32)
        return model.eval()


def newly_initialised(missing: set[str], model: nn.Module) -> bool:
    """Whether parameters of the head were initialised at random. Its outputs cannot be compared then."""
    return bool(missing - {*tied_weights(model)})


def _load(load: Callable[..., Any], dtype: torch.dtype | None, **arguments: Any) -> tuple[nn.Module, set[str]]:
    """Call `load`, a ``from_pretrained``, with the common arguments."""
    model, info = load(dtype=dtype or torch.float32, output_loading_info=True, **arguments)
    return model.float().eval(), without_random_pooler(model, set(info["missing_keys"]))


def _load_from_files(
    model_class: Any,
    path: Path | None,
    folder: Path,
    dtype: torch.dtype | None,
    tensors: Mapping[str, TensorHeader],
    scratch: Path,
    **arguments: Any,
) -> tuple[nn.Module, set[str]]:
    weights = WeightsInFiles(tensors, Path(tempfile.mkdtemp(dir=scratch)))  # several models can share the scratch folder
    with loading_errors(folder):
        model, missing = _load(partial(load_weights, weights.loading(model_class), path), dtype, local_files_only=True, **arguments)
    model.__class__ = model_class  # the loading class adds no state
    weights.give_to(model)
    return model, missing


def without_random_pooler(model: Any, missing: set[str]) -> set[str]:
    """Remove a pooler that the checkpoint lacks and that would be initialised at random. The class works without it.

    Returns:
        The names that are still missing; for a model with a head, all of `missing`.
    """
    base = model.base_model
    pooler = "pooler." if base is model else f"{model.base_model_prefix}.pooler."
    pooler_names = {name for name in missing if name.startswith(pooler)}
    if pooler_names:
        base.pooler = None
    return missing - pooler_names if base is model else missing


def outputs(model: Any, ids: Tensor, *, decoder_tokens: int | None = None, **arguments: Any) -> dict[str, Tensor]:
    """All tensors that one forward pass over ``ids (B, N)`` returns, by name. Without the cache.

    `decoder_tokens`: number of decoder tokens for an encoder-decoder, which are ``ids`` shifted right by one; ``None`` means all.
        Sequence classifiers always get all.
    """
    if "MultipleChoice" in type(model).__name__:
        ids = ids.unsqueeze(1)
    if model.config.is_encoder_decoder:
        if type(model).__name__.endswith("ForSequenceClassification"):  # the head reads the end token's state
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], model.config.eos_token_id)], dim=1)
            decoder_tokens = None
        start = torch.full_like(ids[:, :1], decoder_start(model.config))
        arguments["decoder_input_ids"] = torch.cat([start, ids], dim=1)[:, : min(ids.shape[1], decoder_tokens or ids.shape[1])]
    if (family := known_family(model.config)) is not None:
        arguments = {**family.rule.further_inputs(model.config, *ids.shape[:2]), **arguments}
    with torch.no_grad():
        returned = model(input_ids=ids, return_dict=True, **arguments)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor)}


def class_named(name: str) -> Any | None:
    """The model class of this name in this package or transformers. ``None`` if neither has it."""
    import transformers

    import hf_longattn

    home = hf_longattn if name.startswith("Long") and hasattr(hf_longattn, name) else transformers
    model_class: Any = getattr(home, name, None) if name else None
    return model_class if hasattr(model_class, "from_pretrained") else None


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Context (or decorator) in which transformers, huggingface_hub and torchao log only errors. They draw no progress bars."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity, bars = logging.get_verbosity(), hub_logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), quiet_torchao():
            warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)\b")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()


# Models whose weights stay in their files: each tensor is read when it is used, and released afterwards.
#
# The disk offload of accelerate, from_pretrained(device_map={"": "disk"}), cannot be used instead. It fills a parameter in a hook of the
# module that owns it. Where another module reads the parameter, the model does not run: DeBERTa-v2, and Long models with the mechanism
# synthesizer or the option relative=shaw. It also reads no towers. It saves nothing: a Llama of 1,131 MiB
# in fp32 took 276 MiB and 4.7 s for 64 tokens here, 266 MiB and 3.1 s there; from a bf16 file 317 MiB and 4.6 s here, 807 MiB and 4.6 s
# there (peak resident memory over that of the imports, one core).

ANY_FILE = "model.safetensors"
"""File name passed to transformers for every tensor. transformers never opens this file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, rounded to a dtype before it is used in fp32."""

    header: TensorHeader
    rounded: torch.dtype

    def read(self) -> Tensor:
        """The tensor's values in fp32 (integers unchanged), read block by block."""
        header = self.header
        if not header.dtype.is_floating_point:
            return read_tensor(header)
        if header.dtype == self.rounded == torch.float32:
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
            # needed: buffers, tensors from which others are computed, and names that the model lacks
            buffers = {name for name, _ in model.named_buffers()}
            in_model = names_in_model(self.tensors, model, config.weight_mapping or ())
            needed = {name for name, tensor in in_model.items() if tensor.pattern or tensor.key is None or tensor.key in buffers}
            for name in self.tensors.keys() - needed:
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

    def give_to(self, model: nn.Module) -> None:
        """Make a loaded model read its parameters on the meta device from their files. They are read on each access.

        Args:
            model: from `from_pretrained` of the class that `loading` returned.

        Raises:
            CheckpointError: the file's tensor has another shape.
        """
        for prefix, module in model.named_modules():
            later = {}
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if not parameter.is_meta:
                    continue
                later[name] = self._stored(f"{prefix}.{name}".removeprefix("."), tuple(parameter.shape))
            if later:
                replace_parameters(module, partial(_FileParameters, stored=later))

    def _stored(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        entry = self.index[name]
        file, key = Path(entry["safetensors_file"]), entry["weight_name"]
        header = read_headers(file)[key] if file.parent == self.scratch else self.tensors[key]
        if header.shape != shape:
            raise CheckpointError(f"Tensor {key!r} of {str(header.file)!r} has the shape {header.shape}, but its model asks for {shape}.")
        return StoredTensor(header, getattr(torch, entry["dtype"]))


@dataclass
class _WhileLoading:
    """Stands in for a tensor in a file while a model is loaded. Slicing gives its values if ``needed``, else NaN."""

    stored: StoredTensor
    needed: bool = True

    def __getitem__(self, _: Any) -> Tensor:
        return self.stored.read() if self.needed else torch.tensor(torch.nan).expand(self.stored.header.shape)


class _FileParameters(dict[str, Any]):
    """The parameters of one module. Access by name reads from the file, iteration gives tensors without values."""

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
class MemoryMode:
    """How source and result are run, one after the other, in fp32.

    bytes: size of one model in fp32.
    largest: bytes of the largest tensor in fp32.
    from_files: the weights stay in their files.
    why_not: reason why the models cannot run; empty if they can.
    """

    bytes: int
    largest: int
    from_files: bool
    why_not: str = ""

    def check(self) -> Check:
        """The report's check that states this mode."""
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
        with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as weights_folder:
            yield Path(weights_folder)


def choose_memory_mode(parameters: int, largest: int) -> MemoryMode:
    """Decide how source and result run: loaded whole, or read from files. They are loaded whole if a model takes at most `IN_MEMORY` bytes
    and half of the free memory. `why_not` is set if this does not fit: the model, or twice the largest tensor and
    activations.

    Args:
        parameters: of one model. largest: number of elements in the largest tensor of both models.
    """
    size, tensor, available = 4 * parameters, 4 * largest, available_memory()
    loaded = size * LOADING
    if size <= IN_MEMORY and loaded <= SHARE * available:
        return MemoryMode(size, tensor, False, "")
    needed = 2 * tensor + WORK
    why = f"the largest tensor of {_size(tensor)} in fp32 and what is computed take {_size(needed)} and {_size(available)} are free"
    return MemoryMode(size, tensor, True, why if needed > available else "")


def available_memory() -> int:
    """Bytes that this process can still allocate. The machine's free memory, or less if its control group (container) has a limit."""
    free = _free()
    with contextlib.suppress(OSError, ValueError, KeyError, StopIteration):  # no control groups of version 2, or no limit ("max")
        path = next(
            line.partition("::")[2] for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines() if line.startswith("0::")
        )
        group = GROUPS / path.strip("/")
        limit, used = int((group / "memory.max").read_text(encoding="utf-8")), int((group / "memory.current").read_text(encoding="utf-8"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        cached = int(counts["inactive_file"]) + int(counts["active_file"])
        return max(0, min(free, limit - used + cached))
    return free


def _free() -> int:
    """Free bytes of the machine, from Linux, or from psutil if it is installed."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    try:
        import psutil
    except ImportError:
        return UNKNOWN
    return int(psutil.virtual_memory().available)


def _size(count: Any) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def replace_parameters(module: nn.Module, parameters: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the mapping in which ``module`` keeps its direct parameters."""
    if not isinstance(getattr(module, "_parameters", None), dict):
        raise missing("parameter_dict")
    module._parameters = parameters(module._parameters)


def with_loader(model_class: Any, load: Callable[..., Any]) -> Any:
    """A subclass of ``model_class`` that loads weights by ``load(original, model, state_dict, files, config, *more)``."""
    original = getattr(model_class, "_load_pretrained_model", None)
    if original is None:
        raise missing("load_weights")
    members = {"__module__": model_class.__module__, "_load_pretrained_model": staticmethod(partial(load, original))}
    return type(model_class.__name__, (model_class,), members)
