"""Run source and result on the same input at an old and a new size. For kinds of input that have a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..inputs.common.base import InputSize
from ..inputs.common.running import all_finite, run_model
from ..inputs.common.sized import FurtherChecks, SizedKind
from ..mechanisms import Mechanism
from ..modeling.family.config import attention_implementation
from ..reports import FAILED, PASSED, SKIPPED, Check, Difference, equality
from .flops import cost_of, mechanisms_on
from .lengths import FLOPS_AT_NEW_LENGTH
from .model_loading import load_result, load_source, newly_initialised
from .plan import ConversionPlan


def affordable_size(plan: ConversionPlan, inputs: Any) -> tuple[InputSize, list[Mechanism], FurtherChecks]:
    """The size for checks. The new size is halved towards the old one while its checks need too many FLOPs. Returns this size, the
    mechanism of every layer for it, and the further checks."""
    kind: Any = plan.kind
    sizes, config = plan.inputs, plan.architecture.source_config
    value = sizes.new.value
    while True:
        size = kind.size(config, value)
        layers = mechanisms_on(size, plan.attention, plan.shape)
        further = kind.further_checks(plan, inputs, size, layers)
        cost = cost_of(size, plan.attention, plan.shape)
        flops = 2 * (cost.full_attention_flops + cost.other_flops) + further.runs * cost.total_flops
        smaller = kind.halved(config, value, sizes.old.value)
        if flops <= FLOPS_AT_NEW_LENGTH or smaller == value:
            return size, layers, further
        value = smaller


def check_sizes(kind: SizedKind, plan: ConversionPlan, result: Path, inputs: Any, scratch: Path | None, given_text: bool) -> list[Check]:
    """Run all checks of outputs; the two models are never in memory together.

    `scratch`: if given, the weights stay in their files, see `load_source`.
    """
    old, (new, layers, further) = plan.inputs.old, affordable_size(plan, inputs)
    grows, at_old, at_new = new != old, inputs.at(old), inputs.at(new)
    source: Any
    source, missing = load_source(plan.source, plan.architecture, plan.cast, scratch)
    checks = SizeChecks(plan, newly_initialised(missing, source))
    expected = run_model(kind.compared_part(source, checks.headless), at_old)
    expected_new: dict[str, Tensor] = {}
    if compares_new := grows and kind.base_reads(plan.architecture.source_config, new):
        expected_new = kind.states(run_model(kind.base(source), {**at_new, **kind.arguments_for_resizing()}))
    further.run_source(kind.base(source), at_new)
    del source

    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    outputs = run_model(kind.compared_part(model, checks.headless), at_old)
    states = kind.states(run_model(kind.base(model), at_new))
    last = further.run_result(kind.base(model))
    model.use_base_attention()
    covered = covers(mechanisms_on(old, plan.attention, plan.shape), old)
    full = {} if covered else run_model(kind.compared_part(model, checks.headless), at_old)
    as_source = kind.config_as_source(plan)
    full_new = kind.states(run_model(kind.base(model), at_new)) if compares_new and as_source is None else {}
    model.set_attn_implementation(attention_implementation(plan.config) or "longattn")
    del model
    if compares_new and as_source is not None:
        model = load_result(result, plan.architecture, plan.config, scratch=scratch, config_instead=as_source)[0]
        model.use_base_attention()
        full_new = kind.states(run_model(kind.base(model), at_new))

    at_new_size: list[Check] = []
    if compares_new:
        exact = covers(layers, new) and as_source is None
        whys = [checks.why_not_exact] * (not exact) + [f"positions are {plan.positions}d"] * (as_source is not None)
        at_new_size = checks.at_new(new, expected_new, states, full_new, " and ".join(whys)) + further.at_new(states)
    elif grows:
        detail = f"does not apply: the source does not read {new.words}"
        at_new_size = [Check(f"equal at the new {kind.size_noun} with full attention", SKIPPED, detail)]
    return [*checks.at_old(expected, outputs, full), *at_new_size, checks.finite(new, states), *last]


def covers(layers: Sequence[Mechanism], size: InputSize) -> bool:
    """Whether the mechanism of every layer equals full attention for inputs of this size."""
    return all(layer.covers(size.tokens) for layer in layers)


@dataclass(frozen=True)
class SizeChecks:
    """Checks of the outputs of source and result for inputs of two sizes.

    headless: whether the source has no weights for its head, so that hidden states are compared.
    """

    plan: ConversionPlan
    headless: bool

    @property
    def why_not_exact(self) -> str:
        """Reason why the result's mechanisms give other outputs than the source."""
        return f"the mechanism does not cover the {self.plan.inputs.noun}"

    def compare(
        self, name: str, size: InputSize, how: str, expected: dict[str, Tensor], measured: dict[str, Tensor], why: str = ""
    ) -> Check:
        """Compare the result's outputs with the source's. why: reason why they may differ; empty if they must be equal."""
        values = {**size.values, "outputs": sorted(expected)}
        return equality(name, f"{how}: largest difference from the source", Difference.of(expected, measured), values, why)

    def at_old(self, expected: dict[str, Tensor], outputs: dict[str, Tensor], with_base_attention: dict[str, Tensor]) -> list[Check]:
        """Check ``outputs`` at the old size, and those with the source's attention. The latter are empty if the mechanisms compute it."""
        old, noun = self.plan.inputs.old, self.plan.inputs.kind.size_noun
        what = f"{'hidden states (the source has no weights for its head)' if self.headless else 'outputs'} at {old.describe()}"
        if not with_base_attention:
            return [self.compare("equal where the mechanism covers the input", old, f"{what}, long attention", expected, outputs)]
        how = f"{what}, full attention instead of the mechanism"
        return [
            self.compare(f"equal at the old {noun} with full attention", old, how, expected, with_base_attention),
            self.compare(f"at the old {noun}", old, f"{what}, long attention", expected, outputs, self.why_not_exact),
        ]

    def at_new(
        self, new: InputSize, expected: dict[str, Tensor], states: dict[str, Tensor], with_base_attention: dict[str, Tensor], why: str
    ) -> list[Check]:
        """Check hidden ``states`` at the new size, or a smaller one. Also those with the source's attention.

        why: reason why ``states`` may differ from the source's; empty if they must be equal.
        """
        sizes = self.plan.inputs
        shortened = "" if new == sizes.new else f" (of {sizes.new.words}: a large model, a {sizes.kind.smaller} {sizes.noun})"
        where = f"hidden states at {new.describe()}{shortened}"
        how = sizes.kind.resizing()
        positions = f" and interpolated positions, the source with {how}" if how else ""
        resizing = f" and {how}" if how else ""
        how = f"{where}, long attention, the source with full attention{resizing}"
        return [
            self.compare(
                f"equal at the new {sizes.kind.size_noun} with full attention",
                new,
                f"{where}, full attention{positions}",
                expected,
                with_base_attention,
            ),
            self.compare(f"at the new {sizes.kind.size_noun}", new, how, expected, states, why),
        ]

    def finite(self, new: InputSize, states: dict[str, Tensor]) -> Check:
        """Check that hidden states at the new size are finite."""
        finite = all_finite(states)
        detail = f"hidden states at {new.describe()} are {'' if finite else 'not '}finite"
        return Check(f"finite at the new {self.plan.inputs.kind.size_noun}", PASSED if finite else FAILED, detail, new.values)
