"""Rotary positions for a longer maximum length, written as transformers' ``rope_parameters``.

``rope:linear``    positions divided by the factor (https://arxiv.org/abs/2306.15595). Needs training.
``rope:yarn``      slow frequencies are interpolated, fast ones unchanged (https://arxiv.org/abs/2309.00071): the best
                   scaling without training, although outputs below the old length change too.
``rope:dynamic``   the base grows for inputs beyond the old length, and is unchanged for shorter inputs. transformers
                   measures the growth from ``max_position_embeddings``, so that this field keeps the old length. Keys
                   in a decode cache keep the base with which they were rotated. Beyond the old length, incremental
                   decoding therefore differs from one full pass.
``rope:base``      a larger base slows every frequency down: ``rope:base:8000000`` (Xiong et al. 2023, https://arxiv.org/abs/2309.16039;
                   Gao et al. 2024, https://arxiv.org/abs/2410.02660, take 8e6 for 64K tokens and 1.28e8 for 512K).
                   Needs training.
``rope:longrope``  two lists of factors found by a search (https://arxiv.org/abs/2402.13753), from the source or the
                   caller: ``rope:longrope:FACTORS.json`` with the keys ``short_factor`` and ``long_factor``.
``rope:self-extend``  parameters are unchanged, but tokens of distant pairs get other positions, by the option
                   ``relative`` of layers with full attention (:class:`~.relative.SelfExtend`). No distance is longer
                   than in training. ``rope:self-extend:window=512,group=4`` sets both settings. By default they follow
                   from the old and the new length.
``rope:none``      parameters are unchanged. Values that transformers would derive from ``max_position_embeddings`` are
                   written out, such as the factor of a longrope entry without one (Phi-3). A dynamic entry keeps the
                   old length, if a layer looks back further.
``auto``           ``rope:none`` if no layer looks back further than the old length. Rotary scores depend on distances
                   only, and all distances then occurred in training, so that outputs are exact without training.
                   Otherwise ``rope:yarn``, or ``rope:linear`` for a source that uses it already, for the furthest
                   distance that a layer sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from hf_longattn.errors import CheckpointError, OptionError, nearest
from hf_longattn.files import read_json
from hf_longattn.positions.relative import read_relative, settings_in
from hf_longattn.positions.tables import DROPPED

Parameters = dict[str, Any]
RELATIVE_ADVICE = " To add relative positions, type --option relative=alibi."


@dataclass(frozen=True)
class RopePlan:
    """The rotary fields of the longer model's config."""

    scaling: str  # the name after "rope:"
    parameters: Parameters
    max_position_embeddings: int
    exact: bool  # whether these fields leave the output up to the old length unchanged
    relative: str = ""  # the option of layers with full attention; empty if they get none

    def write(self, config: Any) -> None:
        """Set the rotary fields of a config."""
        config.rope_parameters = dict(self.parameters)
        config.max_position_embeddings = self.max_position_embeddings
        trained = self.parameters.get("original_max_position_embeddings")
        if trained is not None and hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = trained  # Phi-3 has this field twice and reads it here


def _scaled(old: Parameters, rope_type: str, factor: float) -> Parameters:
    """``old`` with another scaling. Only the base and the share of rotated features remain."""
    unscaled = {key: value for key, value in old.items() if key in ("rope_theta", "partial_rotary_factor")}
    return {**unscaled, "rope_type": rope_type, "factor": factor}


def _linear(old: Parameters, old_length: int, new_length: int, value: str) -> RopePlan:
    """``rope:linear``."""
    old_factor = float(old.get("factor", 1.0)) if old.get("rope_type") == "linear" else 1.0
    factor = old_factor * new_length / old_length
    return RopePlan("linear", _scaled(old, "linear", factor), new_length, new_length == old_length)


def _yarn(old: Parameters, old_length: int, new_length: int, value: str) -> RopePlan:
    """``rope:yarn``. A source that uses it already gets a larger factor."""
    if old.get("rope_type") == "yarn":
        parameters = {**old, "factor": max(old["factor"], new_length / old["original_max_position_embeddings"])}
    else:
        parameters = _scaled(old, "yarn", new_length / old_length)
        parameters["original_max_position_embeddings"] = old_length
    return RopePlan("yarn", parameters, new_length, new_length == old_length or parameters == old)


def _base(old: Parameters, old_length: int, new_length: int, value: str) -> RopePlan:
    """``rope:base`` with the new base ``value``."""
    try:
        base = float(value)
    except ValueError:
        base = 0.0
    if not 0 < base < float("inf"):
        raise OptionError(
            f"rope:base needs the new base, a positive number, not {value!r}; type for example rope:base:8000000."
        )
    return RopePlan("base", {**old, "rope_theta": base}, new_length, base == old.get("rope_theta"))


def _longrope(old: Parameters, old_length: int, new_length: int, value: str) -> RopePlan:
    """``rope:longrope`` with the factors of the file ``value`` or, if it is empty, of the source."""
    factor_lists: Parameters = {key: old[key] for key in ("short_factor", "long_factor") if key in old}
    if value:
        try:
            factor_lists = read_json(Path(value))
        except CheckpointError as error:
            raise OptionError(f"Cannot read the rotary factors from '{value}': {error}") from error
        if not isinstance(factor_lists, dict):
            raise OptionError(f"'{value}' must hold a JSON object with short_factor and long_factor.")
    missing = [key for key in ("short_factor", "long_factor") if not isinstance(factor_lists.get(key), list)]
    if missing:
        raise OptionError(
            f"rope:longrope needs factors found by a search, but {' and '.join(missing)} are missing;"
            " write both lists to a JSON file and type rope:longrope:FILE.json, or choose rope:yarn."
        )
    trained = int(old.get("original_max_position_embeddings") or old_length)
    parameters = {
        **_scaled(old, "longrope", new_length / trained),
        **factor_lists,
        "original_max_position_embeddings": trained,
    }
    return RopePlan("longrope", parameters, new_length, False)


def _self_extend(old: Parameters, old_length: int, new_length: int, value: str) -> RopePlan:
    """``rope:self-extend`` with the settings ``value``. By default, the window is a quarter of the old length, and the
    group the smallest with which all distances are below the old length."""
    _, given, _ = settings_in(f"self_extend:{value}")
    window = given.get("window", old_length // 4)
    if window >= old_length:
        raise OptionError(
            f"rope:self-extend leaves distances below window={window} as they are, but the source was trained for "
            f"distances below {old_length}; type a smaller window, or leave it out."
        )

    def furthest(group: int) -> int:
        """The largest distance in a text of the new length."""
        return (new_length - 1) // group + window - window // group

    smallest_group = next(group for group in count(1) if furthest(group) < old_length)
    group = given.get("group", smallest_group)
    if group > 0 and furthest(group) >= old_length:
        raise OptionError(
            f"rope:self-extend with window={window} and group={group} gives distances of up to {furthest(group)} at "
            f"{new_length} tokens, but the source was trained for distances below {old_length}; type "
            f"group={smallest_group} or more."
        )
    relative = read_relative(f"self_extend:window={window},group={group}")
    return RopePlan("self-extend", dict(old), new_length, True, relative)


SCALINGS: dict[str, Callable[[Parameters, int, int, str], RopePlan]] = {
    "none": lambda old, _, new_length, value: RopePlan("none", dict(old), new_length, True),
    "linear": _linear,
    "dynamic": lambda old, length, new_length, value: RopePlan(
        "dynamic", _scaled(old, "dynamic", new_length / length), length, True
    ),
    "yarn": _yarn,
    "base": _base,
    "longrope": _longrope,
    "self-extend": _self_extend,
}
KEEPS_PARAMETERS = ("none", "self-extend")
"""Scalings that leave the source's rotary parameters unchanged. They can be combined with any scaling of the
source."""


def _completed(parameters: Parameters, length: int) -> Parameters:
    """Rotary parameters, completed with the values that transformers would derive from the maximum length.

    That length will change, but these values must not.
    """
    completed = dict(parameters)
    scaling = completed.get("rope_type", "default")
    if scaling not in ("longrope", "yarn", "llama3"):
        return completed
    trained = completed.get("original_max_position_embeddings") or length
    completed["original_max_position_embeddings"] = trained
    if scaling != "llama3" and completed.get("factor") is None:
        completed["factor"] = length / trained
    return completed


def rope_parameters(
    positions: str,
    old: Parameters | None,
    *,
    old_length: int,
    new_length: int,
    reach: int | None = None,
    frequencies: int | None = None,
) -> RopePlan:
    """The rotary parameters of a model extended from ``old_length`` to ``new_length`` tokens.

    Args:
        positions: "auto" or "rope:<scaling>", with a value after some scalings (see the module's docstring).
        old: the source config's ``rope_parameters``.
        old_length, new_length: in tokens.
        reach: number of positions that a query of the new model looks back, its own included; ``None`` if unbounded.
        frequencies: number of rotary frequencies of a head. longrope needs as many factors. ``None`` if unknown.

    Raises:
        OptionError: ``positions`` is unknown or its value is invalid, the length would shrink, or the source is scaled
            in another way.
    """
    if new_length < old_length:
        raise OptionError(
            f"The maximum length can only grow, but {new_length} was requested and the source has {old_length}."
        )
    old = _completed(old or {}, old_length)
    old_scaling = str(old.get("rope_type", "default"))
    all_trained = new_length == old_length or (reach is not None and reach <= old_length)
    if positions == "auto":
        positions = "rope:linear" if old_scaling == "linear" else "rope:yarn"
        if all_trained:
            positions = "rope:none"
        elif reach is not None:
            new_length = min(new_length, reach)  # no pair is further apart
    prefix, _, scaling = positions.partition(":")
    scaling, _, value = scaling.partition(":")
    if prefix != "rope" or scaling not in SCALINGS:
        choices = [f"rope:{name}" for name in SCALINGS]
        raise OptionError(
            f"'{positions}' does not fit a model with rotary positions; expected auto or one of {', '.join(choices)}."
            f"{nearest(positions, choices)}{RELATIVE_ADVICE if positions in DROPPED else ''}"
        )
    if scaling not in KEEPS_PARAMETERS and old_scaling not in ("default", scaling):
        raise OptionError(
            f"The source already scales its rotary positions with '{old_scaling}', which rope:{scaling} cannot follow;"
            " type --positions rope:none to keep its scaling."
        )
    plan = SCALINGS[scaling](old, old_length, new_length, value)
    _check_factors(plan.parameters, frequencies)
    if scaling == "none" and old_scaling == "dynamic" and not all_trained:  # the base grows beyond this length
        return replace(plan, max_position_embeddings=old_length)
    return plan


def _check_factors(parameters: Parameters, frequencies: int | None) -> None:
    """Raise OptionError unless longrope's lists have one positive number per frequency."""
    for name in ("short_factor", "long_factor"):
        if name not in parameters:
            continue
        factors = parameters[name]
        count = len(factors) if frequencies is None else frequencies
        if len(factors) != count or not all(isinstance(factor, int | float) and factor > 0 for factor in factors):
            raise OptionError(
                f"rope:longrope's {name} must be a list of {count} positive numbers, one for each rotary frequency of "
                "a head; supply the factors found for this model."
            )
