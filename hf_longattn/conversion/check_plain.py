"""Compare source and result of a ``--generic`` conversion with the class's attention, all mechanisms, and one tower's at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..engines.common.call import AttentionCall
from ..inputs.running import run_model
from ..inputs.seeded import TOKENS, seeded_inputs
from ..mechanisms import Mechanism
from ..modeling.backend import BACKEND
from ..modeling.family.config import attention_implementation
from ..modeling.generic import set_implementation, towers_of
from ..reports import Check, Difference, equality
from .check import Comparison, check_finite
from .model_loading import attached_mechanisms

LONGEST, LOGITS = 4096, 2**26
"""Maximum number of tokens, and of logits for them, of the inputs on which a plain class is checked for NaN."""


def check_plain(comparison: Comparison) -> list[Check]:
    """Check the outputs of a ``--generic`` result. They equal the source's with the class's attention, and are finite with the mechanisms.

    Raises:
        CheckpointError: the class takes inputs of an unknown kind.
    """
    plan, source, result = comparison.plan, comparison.source, comparison.result
    plan.round_source(source)
    seeded, implementation = seeded_inputs(source), attention_implementation(source.config)
    expected = run_model(source, seeded)
    outputs, covered = _run_and_note_covers(result, seeded)
    vocabulary = getattr(result.config.get_text_config(), "vocab_size", 1)
    longest = seeded_inputs(result, max(TOKENS, min(plan.new_length, LONGEST, LOGITS // vocabulary)))
    finite = check_finite("finite", f"outputs for {_shapes(longest)}", run_model(result, longest))
    keeps_windows = any(plan.source.config.get(field) is not None for field in ("sliding_window", "layer_types"))

    def compare(name: str, measured: dict[str, Tensor], how: str, change: str, covered: bool = True) -> Check:
        detail = f"outputs for {_shapes(seeded)}, {how}: largest difference from the source"
        why = change or ("" if covered else "the mechanism does not cover the input")
        return equality(name, detail, Difference.of(expected, measured), {}, why)

    of_towers, parts = [], {name: towers_of(result)[name] for name in plan.apart}
    for name, alone in parts.items():
        for part in parts.values():
            set_implementation(part, BACKEND if part is alone else implementation, is_tower=True)
        measured, covers = _run_and_note_covers(result, seeded)
        tower = plan.towers[name]
        mechanisms = " and ".join(dict.fromkeys(tower.attention.for_layer(layer)[0] for layer in range(tower.shape.layers)))
        change, how = plan.position_change or tower.position_change, f"{mechanisms} in the tower {name} alone"
        of_towers.append(compare(f"with the mechanism of the tower {name}", measured, how, change, covers and not keeps_windows))
    set_implementation(result, implementation, is_tower=False)
    return [
        compare("equal with the source's attention", run_model(result, seeded), "the class's attention", plan.position_change),
        *of_towers,
        compare("with the mechanism", outputs, "long attention", plan.position_change, covered and not keeps_windows),
        finite,
    ]


def _shapes(inputs: Mapping[str, Any]) -> str:
    """The names and shapes of tensors, for a report."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items() if isinstance(value, Tensor))


def _run_and_note_covers(model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """The outputs of a model, and whether every mechanism that ran covered its input."""
    covered: list[bool] = []

    def note(mechanism: Mechanism, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
        _, k, _, call = args
        covered.append(mechanism.covers(k.shape[2], causal=call.causal))

    hooks = [mechanism.register_forward_pre_hook(note) for mechanism in attached_mechanisms(model).values()]
    outputs = run_model(model, inputs)
    for hook in hooks:
        hook.remove()
    return outputs, bool(covered) and all(covered)
