"""From a long checkpoint back to a plain one: plan → write → verify."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import MEASURED, NEEDS_TRAINING, PASSED, SKIPPED, Check, Difference, equality
from ..constants import CONVERSION_REPORT
from ..data.english import verification_text
from ..errors import CheckpointError, LengthError, OptionError, PositionError, checkpoint_errors, nearest
from ..hub import origin_of
from ..inputs.common.base import InputKind, InputSizes, kind_of
from ..inputs.common.processors import files_before
from ..inputs.common.running import run_model
from ..inputs.common.sized import SizedKind
from ..inputs.plain import PlainKind, series_table
from ..inputs.text import text_sizes
from ..inputs.towers import TowersKind, text_part
from ..modeling.family.definition import Family, PositionTable, family_of, length_before_conversion
from ..modeling.family.sliding_window import with_base_windows
from ..modeling.generic import MECHANISM_NAME_PART
from ..modeling.inference.pruning import whole_shapes, with_silent_heads
from ..positions.relative import unchanged_tokens
from ..positions.tables import SHORTER, SINUSOIDAL, extend_table, extends_learned, moves_rows, shorten_table, unchanged_rows
from ..processor_files import TOKENIZER_LIMIT, limits_before
from ..reading import is_long, read_json_object
from .architectures import NAMES, OWN_FIELDS, Architecture, attached_mechanisms, config_of_towers, read_long
from .config import RevertConfig
from .folders import open_for_writing, write_verified
from .model_loading import load_result, load_source, newly_initialised, outputs, quiet_libraries
from .plan import relative_choices
from .plan_tensors import ResultPlan, TensorPlan, dtype_of, fields_of_towers, parse_dtype, set_dtype
from .report import ConversionReport, StageProgress
from .sources.base import BEFORE, LONGEST, ResultInfo, Source, TowerSource
from .sources.folder import refuse_quantised
from .sources.peft import ADAPTER_FOLDER
from .tensor_files import read_tensor
from .tensor_names import names_in_model
from .verify import Step, check_written, named_step
from .verify_generic import check_reverted
from .verify_outputs import length_from_files

AUTO = "auto"
"""The default of ``positions``: restore the positions before the conversion, if the long model still has them."""
UNCHANGED = "unchanged"
"""The value of ``positions`` if a reversal changes no position table: inputs that are not texts, and --generic models."""
RESTORED = "restored"
"""The meaning of "auto" for an interpolated or stretched table: the table is solved for the original rows."""

NOT_PLAIN = "not a parameter of the plain model"
"""Why a tensor is dropped."""
OWN_PARTS = (".long_attention.", "long_memory.")
"""Substrings of the names of parameters that only Long models have."""


@dataclass(frozen=True)
class RevertPlan(ResultPlan):
    """Everything decided before a byte is written; ``architecture.source_class`` is the class of the result."""

    long_config: Any
    warnings: tuple[str, ...]  # what the plain model loses
    changed: str  # why outputs differ even with full attention; empty if they must be equal
    length_before: int | None  # maximum length of the original model; None if the config does not say
    towers: Mapping[str, RevertPlan] = field(default_factory=dict, kw_only=True)

    @property
    def reads_as_before(self) -> bool:
        """Whether the result takes no more tokens than the original did."""
        return self.length_before is not None and self.new_length <= self.length_before

    @property
    def tokenizer_length(self) -> int:
        """The limit of the result's tokenizer. At most the original's, unless the result takes more tokens."""
        length = super().tokenizer_length
        before = limits_before(self.source.folder) if self.reads_as_before else {}
        return min(length, before.get(TOKENIZER_LIMIT, length))

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            **self.of_long_model(),
            "length_before_conversion": self.length_before,
            "warnings": list(self.warnings),
            **self.sizes(),
        }


@dataclass(frozen=True)
class Restored:
    """The original position table, computed by solving the long model's table for it."""

    tokens: int
    extension: str  # how the conversion extended it


def plan_reversion(source: Source, settings: RevertConfig) -> RevertPlan:
    """Plan the plain model of a long checkpoint.

    Raises:
        CheckpointError: not a long checkpoint, or its base has parameters that the Long model lacks.
        LengthError: the length is unknown or not possible.
        PositionError: an unknown way to shorten positions.
    """
    if not is_long(source.config):
        raise CheckpointError(
            f"{source.name!r} is not a long checkpoint: its config.json has no long_attention, so there is nothing to revert; "
            "give a converted one."
        )
    refuse_quantised(source)
    positions = settings.positions
    if positions != AUTO and positions not in SHORTER:
        known = (AUTO, *SHORTER)
        raise PositionError(
            f"{positions!r} is not a way to shorten positions; expected one of {', '.join(known)}.{nearest(positions, known)}"
        )
    long_model = read_long(source)
    return _plan_of(kind_of(long_model[2]), source, settings, long_model)


LongParts = tuple[Any, str, Family, Any]
"""Config, class name, family, and model on the meta device, of a long checkpoint."""


@singledispatch
def _plan_of(kind: InputKind, source: Source, settings: RevertConfig, long_model: LongParts) -> RevertPlan:
    """Plan a reversal by the kind of input: here, of a model without towers."""
    long_config, long_class, family, long_skeleton = long_model
    cast = parse_dtype(settings.dtype)
    base_class = family.base_of(long_class)
    tables = {name: table for name in source.tensors if (table := family.table(name)) is not None}
    kind.check_settings(f"a {long_class}", settings, resizes=False)
    if settings.positions != AUTO and "max_length" not in kind.settings:
        raise OptionError(
            f"--positions is for texts, and the positions of a model of {kind.nouns} are as they were before the conversion; leave it out."
        )
    inputs, before, positions = _lengths_of(kind, source, settings, long_config, tables)
    new_length = inputs.new.tokens
    for name, table in tables.items():
        own_length = source.tensors[name].shape[0] - table.offset_rows(long_config)
        if own_length < new_length:
            raise LengthError(
                f"{name!r} of {source.name!r} has {own_length} positions, fewer than {new_length}, and a plain {base_class} has the same"
                " length for all tables; give a smaller --max-length."
            )
    with checkpoint_errors(f"The config.json of {source.name!r} makes no valid {base_class}"):
        config = _base_config(family, long_config, new_length)
    set_dtype(config, cast)
    config.architectures = [base_class]
    architecture = Architecture(family, config, base_class, long_class, tower=source.tower)
    skeleton = _base_skeleton(source, family, base_class, config, long_skeleton)
    restored = Restored(before, long_config.position_extension) if positions == RESTORED and before is not None else None
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    full_shapes = whole_shapes(long_skeleton)
    keys = {name: tensor.key for name, tensor in names_in_model(source.tensors, skeleton).items()}
    offset_rows = {name: table.offset_rows(long_config) for name, table in tables.items()}
    tensors = [
        _with_all_heads(source, name, full_shapes[name], cast)
        if name in full_shapes and key is not None and expected[key] == full_shapes[name]
        else _planned(source, name, key, expected, offset_rows.get(name), new_length, positions, restored, cast)
        for name, key in keys.items()
    ]
    changed = _changed(long_config, config, tensors, new_length, positions)
    return RevertPlan(
        source=source,
        architecture=architecture,
        config=config,
        inputs=inputs,
        positions=positions,
        tensors=tuple(tensors),
        max_shard_size=settings.max_shard_size,
        long_config=long_config,
        warnings=(
            *_warnings(source, base_class, long_config, tensors, long_skeleton),
            *_moved_positions(long_config, config, tensors, new_length, before, positions),
        ),
        changed=changed,
        length_before=before,
        files=files_before(source.folder),
    )


@_plan_of.register(TowersKind)
def _plan_towers(kind: TowersKind, source: Source, settings: RevertConfig, long_model: LongParts) -> RevertPlan:
    """Plan the reversal of a model of several towers, each by its own plan. Tensors outside the towers are at most cast."""
    long_config, long_class, family, _ = long_model
    base_class = family.base_of(long_class)
    plans: dict[str, RevertPlan] = {}
    for name, part in kind.parts.items():
        unused: dict[str, Any] = dict.fromkeys({"max_length", "verify_text"}.difference(part.settings))
        of_tower = replace(settings, **unused, positions=AUTO) if unused else settings
        plans[name] = plan_reversion(TowerSource.of(source, name, part.family.model_classes[part.family.base_model_name]), of_tower)
    configs = {name: plan.config for name, plan in plans.items()}
    config = config_of_towers(long_config, configs, family.base_config_class, base_class, f"The config.json of {source.name!r}")
    cast = parse_dtype(settings.dtype)
    set_dtype(config, cast)
    architecture = Architecture(family, config, base_class, long_class)
    with checkpoint_errors(f"The config of {source.name!r} makes no valid {base_class}"), torch.device("meta"):
        skeleton: Any = family.base_class(base_class)(config)
    return RevertPlan(
        source=source,
        architecture=architecture,
        config=config,
        max_shard_size=settings.max_shard_size,
        long_config=long_config,
        warnings=tuple(dict.fromkeys(warning for plan in plans.values() for warning in plan.warnings)),
        changed=" and ".join(plan.changed for plan in plans.values() if plan.changed),
        length_before=text_part(plans).length_before,
        **fields_of_towers(source, architecture, skeleton, plans, cast),
    )


@_plan_of.register(PlainKind)
def _plan_plain(kind: PlainKind, source: Source, settings: RevertConfig, long_model: LongParts) -> RevertPlan:
    """Plan the reversal of a plain class with mechanisms. Its positions stay those of the conversion.

    Raises:
        OptionError: ``max_length`` or ``positions`` is set.
    """
    flags = ["--max-length"] * (settings.max_length is not None) + ["--positions"] * (settings.positions != AUTO)
    if flags:
        raise OptionError(f"{source.name!r} was converted with --generic, which left its positions as they were; leave {flags[0]} out.")
    long_config, long_class, family, _ = long_model
    config: Any = family.base_config_class.from_dict({key: value for key, value in long_config.to_dict().items() if key not in OWN_FIELDS})
    cast = parse_dtype(settings.dtype)
    set_dtype(config, cast)
    tensors = []
    for name, header in source.tensors.items():
        dropped = MECHANISM_NAME_PART in name
        tensors.append(TensorPlan.dropped(header, NOT_PLAIN, cast) if dropped else TensorPlan.kept(name, header, cast))
    report = source.folder / CONVERSION_REPORT
    plan = (read_json_object(report).get("plan") if report.is_file() else None) or {}
    old, new = (int(plan.get(name) or 0) for name in ("old_length", "new_length"))
    changed = "rotary positions" if series_table(config) is None else "positions"
    return RevertPlan(
        source=source,
        architecture=Architecture(family, config, config.architectures[0], long_class),
        config=config,
        inputs=text_sizes(new, new),
        positions=UNCHANGED,
        tensors=tuple(tensors),
        max_shard_size=settings.max_shard_size,
        long_config=long_config,
        warnings=(f"The {changed} stay those of the conversion, for {new:,} tokens instead of {old:,}.",) if old != new else (),
        changed="",
        length_before=None,
    )


@singledispatch
def _lengths_of(
    kind: InputKind, source: Source, settings: RevertConfig, long_config: Any, tables: Mapping[str, PositionTable]
) -> tuple[InputSizes, int | None, str]:
    """The lengths of source and result, the length before the conversion, and the position rule."""
    old_length, positions = kind.family.longest(long_config), settings.positions
    before = _length_before(source, long_config)
    new_length = _length(source, before if settings.max_length is None else settings.max_length, old_length)
    if positions == AUTO:
        stretched = any(table.learned for table in tables.values()) and moves_rows(long_config.position_extension)
        positions = RESTORED if stretched and before is not None and new_length <= before < old_length else "truncate"
    return text_sizes(old_length, new_length), before, positions


@_lengths_of.register(SizedKind)
def _sizes_before(
    kind: SizedKind, source: Source, settings: RevertConfig, long_config: Any, tables: Mapping[str, PositionTable]
) -> tuple[InputSizes, int | None, str]:
    """The counterpart of :func:`_lengths_of` for inputs with a size, whose position tables never change."""
    sizes = kind.sizes(long_config)
    return kind.sizes_between(long_config, sizes.new.value, sizes.old.value), sizes.old.tokens, UNCHANGED


def _length_before(source: Source, config: Any) -> int | None:
    """Maximum length of the original model, from the config or the conversion's report."""
    with checkpoint_errors(f"extended_from in the config.json of {source.name!r} makes no valid config"):
        before = length_before_conversion(config)
    if isinstance(getattr(config, "extended_from", None), dict) or not (source.folder / CONVERSION_REPORT).is_file():
        return before
    plan = read_json_object(source.folder / CONVERSION_REPORT).get("plan")
    old_length = plan.get("old_length") if isinstance(plan, dict) else None
    return old_length if isinstance(old_length, int) and not isinstance(old_length, bool) else None


def _length(source: Source, length: int | None, longest_possible: int) -> int:
    """Maximum length of the result: as asked for, or as before the conversion."""
    if length is None:
        raise LengthError(f"{source.name!r} does not say what length it was converted from; give --max-length.")
    if not 1 <= length <= longest_possible:
        raise LengthError(
            f"{source.name!r} takes {longest_possible} tokens; --max-length is {length}, but must be between 1 and {longest_possible}."
        )
    return length


def _base_config(family: Family, long_config: Any, length: int) -> Any:
    """The plain config: without our fields, and with the values before the conversion."""
    long_only = set(family.config_class().to_dict()) - set(family.base_config_class().to_dict())
    dropped = {*NAMES, *OWN_FIELDS, *long_only}
    values = {name: value for name, value in with_base_windows(long_config.to_dict()).items() if name not in dropped}
    before = getattr(long_config, "extended_from", None) or {}
    keeps_length = family.relative or not kind_of(family).lengthens
    if keeps_length:
        before = {name: value for name, value in before.items() if name not in long_only}
    plain = family.base_config_class.from_dict({**values, **before})
    if keeps_length:
        return plain
    table = next(iter(family.position_tables), None)
    short = plain.max_position_embeddings - (table.config_value(0, plain) if table is not None else 0)
    if length > short:  # longer than before the conversion: rotary positions stay scaled
        plain = family.base_config_class.from_dict(
            {**values, **{k: v for k, v in before.items() if "rope" not in k and "position" not in k}}
        )
    if length != short or table is not None:
        plain.max_position_embeddings = length if table is None else table.config_value(length, plain)
    return plain


def _base_skeleton(source: Source, family: Family, base_class: str, config: Any, long_skeleton: nn.Module) -> nn.Module:
    """The plain model on the meta device.

    Raises:
        CheckpointError: the plain model has parameters that the Long model lacks.
    """
    with checkpoint_errors(f"The config of {source.name!r} makes no valid {base_class}"), torch.device("meta"):
        skeleton: nn.Module = family.base_class(base_class)(config)
    lacking = sorted(set(dict(skeleton.named_parameters())) - set(dict(long_skeleton.named_parameters())))
    if lacking:
        raise CheckpointError(
            f"{source.name!r} cannot be reverted: a plain {base_class} needs {lacking[0]!r}, which the long model lacks;"
            " use the checkpoint that it was converted from."
        )
    return skeleton


def _with_all_heads(source: Source, name: str, shape: tuple[int, ...], cast: torch.dtype | None) -> TensorPlan:
    """Plan a tensor of a layer with pruned heads. Zeros replace the heads, since plain layers have equally many."""
    header = source.tensors[name]
    return TensorPlan(name, "changed", cast or header.dtype, header.shape, shape, header, change=partial(with_silent_heads, shape=shape))


def _planned(
    source: Source,
    name: str,
    key: str | None,
    expected: Mapping[str, tuple[int, ...]],
    offset_rows: int | None,
    length: int,
    positions: str,
    restored: Restored | None,
    cast: torch.dtype | None,
) -> TensorPlan:
    """Plan one tensor.

    key: its name in the plain model. expected: shapes of the plain model's tensors, by name.
    offset_rows: number of rows of a position table that are not positions; `None` for other tensors.
    restored: the original table, if the extended one is solved for it before it is cut to `length`.
    """
    header = source.tensors[name]
    if key is None and any(part in name for part in OWN_PARTS):
        return TensorPlan.dropped(header, NOT_PLAIN, cast)
    action, shape = "kept", header.shape
    change: Callable[[Tensor], Tensor] | None = None
    if offset_rows is not None and header.shape[0] > length + offset_rows:

        def shorter(values: Tensor) -> Tensor:
            if restored is not None:
                if restored.tokens + offset_rows < len(values):
                    values = shorten_table(values, restored.tokens + offset_rows, offset=offset_rows, strategy=restored.extension)
                return shorten_table(values, length + offset_rows, offset=offset_rows)
            return shorten_table(values, length + offset_rows, offset=offset_rows, strategy=positions)

        action, shape, change = "shortened", (length + offset_rows, *header.shape[1:]), shorter
    if key is not None and expected[key] != shape:
        raise CheckpointError(f"Tensor {name!r} of {source.name!r} has shape {shape} when plain, but must have {expected[key]}.")
    return TensorPlan(name, action, dtype_of(header, cast), header.shape, shape, header, offset_rows or 0, change)


def _changed(long_config: Any, config: Any, tensors: list[TensorPlan], length: int, positions: str) -> str:
    """Reason why outputs at the new length differ even with full attention. Empty if they must be equal."""
    if positions != "truncate" and any(tensor.action == "shortened" for tensor in tensors):
        return "its positions are those before the conversion" if positions == RESTORED else "its positions are interpolated"
    if getattr(long_config, "rope_parameters", None) != getattr(config, "rope_parameters", None):
        return "its rotary positions are no longer scaled"
    if any(tensor.action == "dropped" and "long_memory." in tensor.name for tensor in tensors):
        return "its memory tokens are removed"
    return ""


def _moved_positions(
    long_config: Any, config: Any, tensors: list[TensorPlan], length: int, before: int | None, positions: str
) -> list[str]:
    """Warnings about positions that the conversion changed, one sentence each."""
    sentences = []
    lost = "what was learned with them since is lost"
    shortened = [tensor for tensor in tensors if tensor.action == "shortened"]
    moved = moves_rows(long_config.position_extension)
    how = "an interpolated" if long_config.position_extension == "interpolate" else "a stretched"
    if long_config.position_extension == "none":
        sentences.append("The conversion dropped the position table, whose rows are now equal: this is not the model that was converted.")
    elif moved and positions == RESTORED and shortened:
        sentences.append(f"The {how.split()[1]} position table is solved back to the {before} positions before the conversion; {lost}.")
    elif moved and positions == "truncate" and before is not None and length > unchanged_rows(long_config.position_extension, before):
        way = "" if length > before else "; --positions auto solves them back"
        sentences.append(f"The first {length} rows of {how} position table are not those of the model that was converted{way}.")
    elif long_config.position_extension != "interpolate" and positions == "interpolate" and shortened:
        sentences.append(
            "The position table, which was not interpolated, is interpolated to fewer positions: outputs differ from those of the long"
            " model and of the original one."
        )
    rope, plain = getattr(long_config, "rope_parameters", None), getattr(config, "rope_parameters", None)
    if rope != plain:
        sentences.append(
            f"The rotary positions change from {_rope(rope)} back to {_rope(plain)}, as before the conversion; {lost}."
            + (f" --max-length {before + 1} or more keeps them." if before is not None else "")
        )
    elif before is not None and length > before and "rope_parameters" in (getattr(long_config, "extended_from", None) or {}):
        why = f"the result is longer than the {before} tokens before the conversion"
        sentences.append(f"The rotary positions stay {_rope(rope)}, since {why}.")
    return sentences


def _rope(parameters: Any) -> str:
    """Rotary parameters as text, for example ``'yarn' with factor 4``."""
    if not isinstance(parameters, dict):
        return "none"
    kind = parameters.get("rope_type", "default")
    return f"{kind!r}" + (f" with factor {parameters['factor']:g}" if isinstance(parameters.get("factor"), int | float) else "")


def _warnings(source: Source, base_class: str, long_config: Any, tensors: list[TensorPlan], skeleton: nn.Module) -> list[str]:
    """Warnings about losses in the plain model, one sentence each."""
    sentences = []
    dropped = [tensor for tensor in tensors if tensor.action == "dropped"]
    if dropped:
        named = f"{len(dropped)} parameters of the mechanism are dropped ({dropped[0].name}, …)"
        sentences.append(f"{named}: what it learned with them is lost.")
    if any(tensor.action == "changed" for tensor in tensors):
        sentences.append(f"A {base_class} has the same number of heads in all layers, so those that were pruned are there again, as zeros.")
    mechanisms = sorted({mechanism.name for mechanism in attached_mechanisms(skeleton).values()} - {"full"})
    family, layers = family_of(long_config), long_config.num_hidden_layers
    if family.own_attention is not None and long_config.long_attention.same_layers(family.own_attention(long_config), layers):
        mechanisms = []
    if family.base_classes is not None:
        long_class = family.model_class(base_class).__name__
        sentences.append(f"transformers builds a {base_class} only with a package that is gone; {long_class} reads it.")
    if mechanisms:
        sentences.append(f"The plain model has the attention of a {base_class} in place of {', '.join(mechanisms)}.")
    stacks = [long_config.long_attention, getattr(long_config, "decoder_long_attention", None)]
    for choice in dict.fromkeys(choice for stack in stacks if stack is not None for choice in relative_choices(stack)):
        if (tokens := unchanged_tokens(choice)) is not None:
            lost = "distant tokens are at their own positions again"
            lost = lost if tokens else "the plain model does not know the order that it learned from them"
            sentences.append(f"Its relative positions ({choice}) are dropped: {lost}.")
    adapter = source.folder / ADAPTER_FOLDER
    if adapter.is_dir():
        sentences.append(f"The adapter in {str(adapter)!r} is not copied; it fits the plain model as well.")
    return sentences


REVERT_REPORT = "revert_report.json"


def revert_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: RevertConfig | None = None,
    *,
    progress: StageProgress | None = None,
    **settings: Any,
) -> ConversionReport:
    """Turn a long checkpoint into a plain one that loads without this package. It may have been trained further.

    The result has full attention. Parameters of the mechanisms are dropped, and positions are those before the conversion; a
    ``UserWarning`` says what is lost. Reverting a conversion gives the tensors of the source. An interpolated table is solved for the
    original one, up to the rounding of its dtype. A table that was dropped (``positions="none"``, ``"alibi"``) cannot be restored. Rotary
    positions are those before the conversion, but stay scaled if the result is longer.

    Args:
        source: a folder, or a Hub repository id.
        destination: a folder that does not exist yet; it is complete or does not appear.
        config: the settings; or its fields as keywords, see :class:`~hf_longattn.RevertConfig`.
        progress: called as progress(stage, done, total).

    Returns:
        The report, which is also in the destination's revert_report.json.

    Raises:
        LongAttentionError: one sentence; nothing was written.
    """
    with quiet_libraries():
        report = _reverted(source, destination, RevertConfig.from_keywords(config, settings), progress)
    for sentence in report.plan["warnings"]:
        warnings.warn(sentence, stacklevel=2)
    return report


def _reverted(source: str | Path, destination: str | Path, settings: RevertConfig, progress: StageProgress | None) -> ConversionReport:
    clock = {"start": time.perf_counter()}
    text = verification_text(settings.verify_text)
    opened, target = open_for_writing(source, destination, overwrite=settings.overwrite, revision=settings.revision, token=settings.token)
    plan = plan_reversion(opened, settings)
    inputs = plan.kind.verification_inputs(plan, text, settings.verify_audio) if settings.verify else None
    base_class = plan.architecture.source_class
    reads = BEFORE if plan.reads_as_before else LONGEST
    result = ResultInfo(target, base_class, "transformers", plan.new_length, reads, str(destination))
    return write_verified(
        plan,
        result,
        clock,
        inputs,
        verify_reversion,
        settings=settings.to_dict(),
        report_file=REVERT_REPORT,
        overwrite=settings.overwrite,
        introduction=f"A plain `{base_class}` for {plan.kind.introduce(plan)}, made by `longattn revert` from "
        f"{origin_of(opened.name, opened.folder)}.",
        progress=progress,
    )


MAX_COMPARED_TOKENS = 1024
"""Maximum number of tokens on which the models are compared, since both have full attention."""


def verify_reversion(plan: RevertPlan, result: Path, inputs: Any) -> list[Check]:
    """Check the written folder `result`. Every tensor, the tokenizer or image processor, and outputs equal to the long model's with full
    attention."""

    def compare(opened: Source, scratch: Path | None) -> list[Step]:
        parts = ((name, part, inputs[name] if name else inputs) for name, part in plan.parts.items())
        return [named_step(name, partial(_compare_outputs, part.kind, part, result, of_part, scratch)) for name, part, of_part in parts]

    positions = [partial(_check_positions, part, part.open_result(result)) for part in plan.parts.values()]
    return check_written(plan, result, inputs, compare, further=positions)


def _check_positions(plan: RevertPlan, result: Source) -> list[Check]:
    """Check whether the written tables are the source's. Extended by the conversion's rule, they then equal the long model's."""
    name, before = "positions of the model that was converted", plan.length_before
    tables = [tensor for tensor in plan.tensors if tensor.action == "shortened" and tensor.header is not None]
    if before is None or not tables:
        return []
    rule = plan.long_config.position_extension
    if not extends_learned(rule):
        return [Check(name, MEASURED, "the conversion dropped the position table, so its values cannot be restored")]
    if plan.new_length != before:
        return [Check(name, SKIPPED, f"the model that was converted took {before} tokens, and the result takes {plan.new_length}")]
    largest = bound = 0.0
    for tensor in tables:
        assert tensor.header is not None
        long, short = read_tensor(tensor.header).double(), read_tensor(result.tensors[tensor.name])
        table = plan.architecture.family.table(tensor.name)
        strategy = rule if table is None or table.learned else SINUSOIDAL
        again = extend_table(short, len(long), offset=tensor.offset, strategy=strategy).double()
        largest = max(largest, float((again - long).abs().max()))
        bound = max(bound, 4 * max(torch.finfo(dtype).eps for dtype in (short.dtype, tensor.header.dtype)) * float(long.abs().max()))
    detail = f"extended by {rule!r} again, the table differs from the long model's by {largest:.1e}"
    if largest <= bound:
        return [Check(name, PASSED, f"{detail}, which is rounding: they are the source's", {"max_abs_difference": largest})]
    why = "it was trained further, or extended in another way, so they are not the source's"
    return [Check(name, MEASURED, f"{detail}: {why}", {"max_abs_difference": largest})]


@singledispatch
def _compare_outputs(kind: InputKind, plan: RevertPlan, result: Path, inputs: Any, scratch: Path | None) -> list[Check]:
    """Compare the outputs of source and result."""
    long_base = f"the long model with {plan.architecture.family.base_attention_name}"
    name = f"equal to {long_base}"
    run, size = _runner(plan.kind, plan, inputs, scratch)
    expected, headless = _full_attention(plan, None, run, scratch)
    source = _as_before(plan)
    as_source = {} if source is None else _full_attention(plan, source, run, scratch)[0]
    plain, _ = load_source(plan.open_result(result), plan.architecture, None, scratch)
    of_plain = run(plan.kind.compared_part(plain, headless))
    checks = [_compared(name, long_base, expected, of_plain, size, plan.changed)]
    if source is not None:
        reference = "the long model with full attention and the rotary positions that it was converted from"
        checks.append(_compared("equal to the model that was converted, with these weights", reference, as_source, of_plain, size, ""))
    return checks


_compare_outputs.register(PlainKind, check_reverted)
Runner = Callable[[Any], dict[str, Tensor]]
"""Function that runs a model on the compared inputs and returns its tensors by name."""


@singledispatch
def _runner(kind: InputKind, plan: RevertPlan, inputs: Any, scratch: Path | None) -> tuple[Runner, tuple[int, str]]:
    """The function that runs a model on the compared inputs. With their length and its unit."""
    length = min(plan.new_length, MAX_COMPARED_TOKENS if scratch is None else min(MAX_COMPARED_TOKENS, length_from_files(plan)))
    ids = inputs.tokens(length)
    return lambda model: outputs(model, ids, decoder_tokens=length), (length, "tokens")


@_runner.register(SizedKind)
def _runner_at_size(kind: SizedKind, plan: RevertPlan, inputs: Any, scratch: Path | None) -> tuple[Runner, tuple[int, str]]:
    size = plan.inputs.new
    arguments = inputs.at(size)
    return lambda model: run_model(model, arguments), (size.tokens, size.unit)


def _full_attention(plan: RevertPlan, config: Any, run: Runner, scratch: Path | None) -> tuple[dict[str, Tensor], bool]:
    """Outputs of the long model with full attention, and whether the head is missing. If it is, they are the base's.

    config: the config to load the long model with; `None` means the model's own.
    """
    model: Any
    model, missing = load_result(plan.source.folder, plan.architecture, plan.long_config, plan.cast, scratch, config_instead=config)
    model.use_base_attention()
    headless = newly_initialised(missing, model)
    return run(plan.kind.compared_part(model, headless)), headless


def _as_before(plan: RevertPlan) -> Any:
    """The long model's config with the rotary positions before the conversion. `None` if the result does not have those."""
    before = getattr(plan.long_config, "extended_from", None)
    if not isinstance(before, dict) or not before.get("rope_parameters") or plan.length_before is None:
        return None
    if plan.new_length > plan.length_before or before["rope_parameters"] == plan.long_config.rope_parameters:
        return None
    config = copy.deepcopy(plan.long_config)
    for name in ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings"):
        if name in before:
            setattr(config, name, before[name])
    return config


def _compared(
    name: str, reference: str, expected: dict[str, Tensor], measured: dict[str, Tensor], size: tuple[int, str], changed: str
) -> Check:
    """Compare outputs. size: input length and unit. changed: reason why outputs differ; empty if they must be equal."""
    difference = Difference.of({output: expected[output] for output in expected if output in measured}, measured)
    length, unit = size
    detail, values = f"outputs at {length} {unit}: largest difference from {reference}", {"length": length, "tokens": length}
    check = equality(name, detail, difference, values, changed)
    return replace(check, status=MEASURED) if check.status == NEEDS_TRAINING else check
