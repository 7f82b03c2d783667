"""The way back, planned: what becomes of every tensor of a long checkpoint in a plain one of its base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, LengthError, LongAttentionError, PositionError, in_a_line, nearest
from ...families.registry import Family, PositionTable
from ...positions import SHORTER, shorten_table
from ...positions.relative import relative_kind
from ...reading import read_json_object
from ..architectures.base import NAMES, OWN_FIELDS, Architecture, attached_mechanisms
from ..architectures.long import read_long
from ..planning.attention import relative_choices
from ..planning.dtypes import parse_dtype
from ..planning.lengths import longest
from ..planning.result import ResultPlan, TensorPlan
from ..planning.tensors import model_key
from ..report import REPORT
from ..sources.base import Source
from ..transforming.adapter import ADAPTER_FOLDER

__all__ = ["AUTO", "RESTORED", "RevertPlan", "plan_reversion"]

AUTO = "auto"
"""The positions before the conversion, as far as the long model still has them."""
RESTORED = "restored"
"""An interpolated table is then solved back to the rows that it was interpolated from."""

OWN_PARTS = (".long_attention.", "long_memory.")
"""In the names of parameters that only a Long model has."""


@dataclass(frozen=True)
class RevertPlan(ResultPlan):
    """Everything that is decided before a byte is written; ``architecture.source_class`` is the class of the result."""

    long_config: Any
    warnings: tuple[str, ...]  # what the plain model does not do as the long one did
    changed: str  # why the two differ even with full attention; empty when they must not
    length_before: int | None  # tokens of the model that the long one was made from; None where the config does not say

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {
            "source": self.source.name,
            "long_class": self.architecture.long_class,
            "class": self.architecture.source_class,
            "model_type": self.config.model_type,
            "old_length": self.old_length,
            "new_length": self.new_length,
            "positions": self.positions,
            "length_before_conversion": self.length_before,
            "warnings": list(self.warnings),
            **self.sizes(),
        }


def plan_reversion(
    source: Source,
    *,
    max_length: int | None = None,
    positions: str = AUTO,
    dtype: str | torch.dtype | None = None,
    max_shard_size: str | int | None = None,
) -> RevertPlan:
    """Say what the plain model of a long checkpoint is; arguments as of :func:`~hf_longattn.revert_checkpoint`.

    Raises:
        CheckpointError: no long checkpoint, or one of a base that has parameters which the Long model does without.
        LengthError: a length that is unknown or cannot be had.
        PositionError: an unknown way to shorten positions.
    """
    if "long_attention" not in source.config:
        raise CheckpointError(f"{source.name!r} is no long checkpoint of this package: its config.json has no long_attention.")
    cast = parse_dtype(dtype)
    if positions != AUTO and positions not in SHORTER:
        known = (AUTO, *SHORTER)
        raise PositionError(
            f"Unknown way {positions!r} to shorten positions; expected one of {', '.join(known)}.{nearest(positions, known)}"
        )
    long_config, long_class, family, long_skeleton = read_long(source)
    base_class = next(name for name, one in family.heads.items() if one == long_class)
    tables = {name: table for name in source.tensors if (table := family.table(name)) is not None}
    old_length = longest(family, long_config)
    before = _length_before(source, family, long_config)
    new_length = _length(source, before if max_length is None else max_length, old_length)
    if positions == AUTO:
        stretched = any(table.learned for table in tables.values()) and long_config.position_extension == "interpolate"
        positions = RESTORED if stretched and before is not None and new_length <= before < old_length else "truncate"
    for name, table in tables.items():
        if source.tensors[name].shape[0] < new_length + table.offset:
            raise LengthError(
                f"{name!r} of {source.name!r} has positions for {source.tensors[name].shape[0] - table.offset} tokens, but a plain"
                f" {base_class} has one length for all, and {new_length} was asked for; give a smaller --max-length."
            )
    try:
        config = _base_config(source, family, long_config, new_length, cast)
    except LongAttentionError:
        raise
    except Exception as error:  # the config classes raise what their validators happen to raise
        raise CheckpointError(f"The config.json of {source.name!r} makes no {base_class}: {in_a_line(error)}.") from error
    config.architectures = [base_class]
    architecture = Architecture(family, config, base_class, long_class)
    skeleton = _base_skeleton(source, base_class, config, long_skeleton)
    restored = before if positions == RESTORED else None
    tensors = [_planned(source, name, skeleton, tables.get(name), new_length, positions, restored, cast) for name in source.tensors]
    changed = _changed(long_config, config, tensors, new_length, positions)
    return RevertPlan(
        source=source,
        architecture=architecture,
        config=config,
        old_length=old_length,
        new_length=new_length,
        positions=positions,
        tensors=tuple(tensors),
        max_shard_size=max_shard_size,
        long_config=long_config,
        warnings=(
            *_warnings(base_class, long_config, tensors, long_skeleton),
            *_moved_positions(long_config, config, tensors, new_length, before, positions),
            *_left_behind(source),
        ),
        changed=changed,
        length_before=before,
    )


def _length_before(source: Source, family: Family, config: Any) -> int | None:
    """Tokens of the model that the long one was made from, as its config or the conversion's report says."""
    before = getattr(config, "extended_from", None)
    if isinstance(before, dict):
        values = {name: value for name, value in source.config.items() if name != "max_decoder_position_embeddings"}
        try:
            found: Any = longest(family, family.config_class.from_dict({**values, **before}))
        except LongAttentionError:
            raise
        except Exception as error:  # the config classes raise what their validators happen to raise
            raise CheckpointError(f"extended_from in the config.json of {source.name!r} makes no config: {in_a_line(error)}.") from error
        return found if isinstance(found, int) else None
    if (source.folder / REPORT).is_file():
        plan = read_json_object(source.folder / REPORT).get("plan")
        found = plan.get("old_length") if isinstance(plan, dict) else None
        return found if isinstance(found, int) and not isinstance(found, bool) else None
    return None


def _length(source: Source, asked: int | None, longest_possible: int) -> int:
    """Tokens of the result: what was asked for, or what the long model was made from."""
    if asked is None:
        raise LengthError(f"{source.name!r} does not say what length it was converted from; give --max-length.")
    if not 1 <= asked <= longest_possible:
        raise LengthError(f"{source.name!r} takes {longest_possible} tokens; give --max-length between 1 and that, not {asked}.")
    return asked


def _base_config(source: Source, family: Family, long_config: Any, length: int, cast: torch.dtype | None) -> Any:
    """The plain config: the long one's without our fields, and with what conversion had changed as it was."""
    own = set(family.config_class().to_dict()) - set(family.base_config_class().to_dict())
    values = {name: value for name, value in long_config.to_dict().items() if name not in {*NAMES, *OWN_FIELDS, *own}}
    before = getattr(long_config, "extended_from", None) or {}
    plain = family.base_config_class.from_dict({**values, **before})
    table = next(iter(family.position_tables), None)
    short = plain.max_position_embeddings - (table.config_value(0) if table is not None else 0)
    if length > short:  # longer than it was: rotary positions stay as they were stretched
        plain = family.base_config_class.from_dict(
            {**values, **{k: v for k, v in before.items() if "rope" not in k and "position" not in k}}
        )
    if length != short or table is not None:
        plain.max_position_embeddings = length if table is None else table.config_value(length)
    if cast is not None:
        plain.dtype = cast
    return plain


def _base_skeleton(source: Source, base_class: str, config: Any, long_skeleton: nn.Module) -> nn.Module:
    """The plain model without storage.

    Raises:
        CheckpointError: it has parameters that the Long model does without.
    """
    import transformers

    try:
        with torch.device("meta"):
            skeleton = getattr(transformers, base_class)(config)
    except Exception as error:  # the constructors raise what they happen to raise
        raise CheckpointError(f"The config of {source.name!r} does not make a {base_class}: {in_a_line(error)}.") from error
    lacking = sorted(set(dict(skeleton.named_parameters())) - set(dict(long_skeleton.named_parameters())))
    if lacking:
        raise CheckpointError(
            f"{source.name!r} cannot go back: a plain {base_class} needs {lacking[0]!r}, which the long model does without;"
            " its checkpoint is the one that it was converted from."
        )
    return skeleton


def _planned(
    source: Source,
    name: str,
    skeleton: nn.Module,
    table: PositionTable | None,
    length: int,
    positions: str,
    restored: int | None,
    cast: torch.dtype | None,
) -> TensorPlan:
    """restored: tokens of the table that an interpolated one is solved back to, before it is cut to `length`."""
    header = source.tensors[name]
    dtype = cast if cast is not None and header.torch_dtype.is_floating_point else header.torch_dtype
    expected = {one: tuple(tensor.shape) for one, tensor in skeleton.state_dict().items()}
    key = model_key(name, expected, skeleton)
    if key is None and any(part in name for part in OWN_PARTS):
        return TensorPlan(name, "dropped", dtype, header.shape, None, header, reason="the plain model has no such parameter")
    action, shape = "kept", header.shape
    change: Callable[[Tensor], Tensor] | None = None
    if table is not None and header.shape[0] > length + table.offset:
        offset = table.offset

        def shorter(values: Tensor) -> Tensor:
            if restored is not None:
                if restored + offset < len(values):
                    values = shorten_table(values, restored + offset, offset=offset, strategy="interpolate")
                return shorten_table(values, length + offset, offset=offset)
            return shorten_table(values, length + offset, offset=offset, strategy=positions)

        action, shape, change = "shortened", (length + offset, *header.shape[1:]), shorter
    if key is not None and expected[key] != shape:
        raise CheckpointError(f"Tensor {name!r} of {source.name!r} has the shape {header.shape}, but its config asks for {expected[key]}.")
    return TensorPlan(name, action, dtype, header.shape, shape, header, 0 if table is None else table.offset, change)


def _changed(long_config: Any, config: Any, tensors: list[TensorPlan], length: int, positions: str) -> str:
    """Why outputs at the new length differ although both models attend to everything; empty when they must not."""
    if positions != "truncate" and any(tensor.action == "shortened" for tensor in tensors):
        return "its positions go back to those before the interpolation" if positions == RESTORED else "its positions are interpolated"
    if getattr(long_config, "rope_parameters", None) != getattr(config, "rope_parameters", None):
        return "its rotary positions are no longer stretched"
    if any(tensor.action == "dropped" and "long_memory." in tensor.name for tensor in tensors):
        return "its memory tokens are gone"
    return ""


def _moved_positions(
    long_config: Any, config: Any, tensors: list[TensorPlan], length: int, before: int | None, positions: str
) -> tuple[str, ...]:
    """What becomes of positions that the conversion had changed, in a sentence for each kind."""
    found = []
    lost = "what was learned with them since is lost"
    shortened = [tensor for tensor in tensors if tensor.action == "shortened"]
    if long_config.position_extension == "none":
        found.append("The conversion dropped the position table, which stays zeros: this is not the model that was converted.")
    elif long_config.position_extension == "interpolate" and positions == RESTORED and shortened:
        found.append(f"The interpolated position table is solved back to the {before} positions before the conversion; {lost}.")
    elif long_config.position_extension == "interpolate" and positions == "truncate" and before is not None:
        way = "" if length > before else "; --positions auto solves them back"
        found.append(f"The first {length} rows of an interpolated position table are not those of the model that was converted{way}.")
    elif long_config.position_extension != "interpolate" and positions == "interpolate" and shortened:
        found.append(
            "The position table, which was not interpolated, is squeezed into fewer positions: outputs differ from those of the long"
            " model, and of the one that it was made from."
        )
    rope, plain = getattr(long_config, "rope_parameters", None), getattr(config, "rope_parameters", None)
    if rope != plain:
        found.append(
            f"The rotary positions go back from {_rope(rope)} to {_rope(plain)}, as before the conversion; {lost}."
            + (f" --max-length {before + 1} or more keeps them." if before is not None else "")
        )
    elif before is not None and length > before and "rope_parameters" in (getattr(long_config, "extended_from", None) or {}):
        found.append(
            f"The rotary positions stay {_rope(rope)}, since the result takes more than the {before} tokens before the conversion."
        )
    return tuple(found)


def _rope(parameters: Any) -> str:
    """`yarn, factor 4`, as a user knows it."""
    if not isinstance(parameters, dict):
        return "none"
    kind = parameters.get("rope_type", "default")
    return f"{kind!r}" + (f" with factor {parameters['factor']:g}" if isinstance(parameters.get("factor"), int | float) else "")


def _left_behind(source: Source) -> tuple[str, ...]:
    adapter = source.folder / ADAPTER_FOLDER
    return (f"The adapter in {str(adapter)!r} is left out; it fits the plain model as well.",) if adapter.is_dir() else ()


def _warnings(base_class: str, long_config: Any, tensors: list[TensorPlan], skeleton: nn.Module) -> tuple[str, ...]:
    found = []
    dropped = [tensor for tensor in tensors if tensor.action == "dropped"]
    if dropped:
        named = f"{len(dropped)} parameters of the mechanism are left out ({dropped[0].name}, …)"
        found.append(f"{named}: what it learned with them is not in the plain model.")
    mechanisms = sorted({one.name for one in attached_mechanisms(skeleton).values()} - {"full"})
    if mechanisms:
        found.append(f"The plain model attends as a {base_class} does, where the long one has {', '.join(mechanisms)}.")
    stacks = [long_config.long_attention, getattr(long_config, "decoder_long_attention", None)]
    relative = [choice for stack in stacks if stack is not None for choice in relative_choices(stack) if not relative_kind(choice).neutral]
    if relative:
        found.append(f"Its relative positions ({relative[0]}) are left out: a plain model trained without them knows no order from them.")
    return tuple(found)
