"""Check the result of a conversion: source and result are loaded, and their tensors and outputs compared."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import checkpoint_errors
from ..evaluation.flops import layer_mechanisms
from ..evaluation.pooling import SentencePooling, sentence_pooling
from ..inputs.running import all_finite
from ..inputs.tokenizer import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..loading import tied_weights
from ..modeling.attach.attention_sites import MECHANISM_ATTRIBUTE, copied_parameters
from ..modeling.backend import BACKEND
from ..modeling.family.config import attention_implementation
from ..modeling.family.definition import without_head
from ..modeling.family.registration import auto_class_name
from ..positions.tables import DROPPED, extend_table, unchanged_rows
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, PASSED, SKIPPED, Check, Difference, equality
from .architectures import attached_mechanisms, attached_memory
from .check_embeddings import EMBEDDINGS, LENGTHS, check_embeddings, embeddings, passages
from .check_loss import LOSS, check_loss, text_losses
from .folders import POSITIONS, READY, SHORT_TEXTS, UNKNOWN, VERDICT, StageProgress, undecided, verdict_check
from .lengths import Lengths, choose_lengths, covers, decoder_mechanisms
from .model_loading import outputs
from .plan import ConversionPlan
from .sources import tower_prefix

HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining")
BEYOND = "beyond the old length"
"""Name of the check of texts that the source cannot read, for heads that nothing is measured of."""
AS_CONFIGURED, MECHANISMS, BASE = "as for texts of up to {}", "long attention", "full attention instead of the mechanism"
"""The attention of the result in a comparison: as it is; by mechanisms also for texts of up to ``exact_length``; or the source's."""
PADDING = 37
"""Tokens of padding in the padding check: not a multiple of any block size."""
DECODED = 32
"""Maximum number of decoder tokens of an encoder-decoder in the checks at the new length."""
ROUNDED = 1e-2
"""Maximum relative difference of computed position rows from their values before rounding; bf16 has 4e-3."""


@dataclass(frozen=True)
class Comparison:
    """Source and result of a conversion, both loaded in fp32, with everything that their check needs.

    Attributes:
        plan: of the conversion, or of a tower.
        source: a model of the source's class. Its values are rounded in place if the plan casts.
        result: loaded from ``folder``.
        folder: the result's folder, with its tokenizer or processor.
        inputs: of the plan's kind of input, for running both models.
        missing, lacking: names of parameters that the source's and the written files lack.
        given_text: the inputs are a text of the user's, so more time is spent on measuring.
    """

    plan: ConversionPlan
    source: Any
    result: Any
    folder: Path
    inputs: Any
    missing: frozenset[str] = frozenset()
    lacking: frozenset[str] = frozenset()
    given_text: bool = False

    @property
    def base(self) -> Any:
        """The source without its head."""
        return without_head(self.source)

    @property
    def long(self) -> Any:
        """The result without its head."""
        return without_head(self.result)

    @property
    def headless(self) -> bool:
        """Whether the source's files lack weights of its head, so that only hidden states can be compared."""
        return bool(self.missing - {*tied_weights(self.source)})

    @property
    def compared(self) -> tuple[Any, Any]:
        """The parts of source and result whose outputs are compared."""
        return (self.base, self.long) if self.headless else (self.source, self.result)

    @property
    def outputs(self) -> str:
        """The compared outputs, as a noun phrase."""
        return "hidden states (the source has no weights for its head)" if self.headless else "outputs"

    def tower(self, name: str) -> Comparison:
        """The comparison of one tower of both models."""
        prefix = tower_prefix(name)
        source, result = (model.get_submodule(prefix.rstrip(".")) for model in (self.source, self.result))
        missing = frozenset(key.removeprefix(prefix) for key in self.missing if key.startswith(prefix))
        return Comparison(self.plan.towers[name], source, result, self.folder, self.inputs[name], missing, given_text=self.given_text)


def check_result(comparison: Comparison, progress: StageProgress | None = None) -> list[Check]:
    """Check a written result: its tensors, tokenizer or processor, and outputs. Ends at the first step that fails.

    Args:
        progress: called as progress("verify", done, total).

    Raises:
        CheckpointError: a model does not run.
    """
    plan = comparison.plan
    steps: list[tuple[str, Callable[[], list[Check]]]] = [
        ("", partial(check_tensors, comparison)),
        ("", partial(plan.kind.processor, plan, comparison.folder, comparison.inputs)),
    ]
    for name, part in ({} if plan.generic else plan.towers).items():  # a plain class compares its towers itself
        steps.append((f"{name}: ", partial(part.kind.check, comparison.tower(name))))
    steps.append(("", partial(plan.kind.check, comparison)))
    checks: list[Check] = []
    for done, (prefix, step) in enumerate(steps):
        if progress is not None:
            progress("verify", done, len(steps))
        with checkpoint_errors("Verification failed, so nothing was kept: source or result does not run (--no-verify leaves it out)"):
            checks += [replace(check, name=prefix + check.name) for check in step()]
        if any(check.status == FAILED for check in checks):
            break
    if progress is not None:
        progress("verify", len(steps), len(steps))
    return labelled(plan, checks)


def labelled(plan: ConversionPlan, checks: Sequence[Check]) -> list[Check]:
    """The checks, and the plan's warnings as checks. Warnings get the status of the check that decides on training.

    If no check decides, or the one cannot tell, the status of differing outputs and of untrained positions is "needs training".
    """
    deciding = verdict_check(checks)
    label = NEEDS_TRAINING if deciding is None or deciding.values[VERDICT] == UNKNOWN else deciding.status
    measured = f"but the result is {READY} ({deciding.name})" if deciding is not None and label == MEASURED else ""
    warned = [f"{warning.problem}, {measured}" if measured else str(warning).rstrip(".") for warning in plan.warnings]
    of_outputs = [replace(check, status=label) if check.status == NEEDS_TRAINING else check for check in checks]
    return [*of_outputs, *(Check(POSITIONS, label, sentence) for sentence in warned)]


# Tensors


def check_tensors(comparison: Comparison) -> list[Check]:
    """Compare every tensor of the result with the source's.

    They have the same bytes, rounded if the plan casts. Position tables keep their first rows, or have equal rows if the rule drops them.
    Further tensors belong to mechanisms or memory tokens.
    """
    plan, source, result, missing = comparison.plan, comparison.source, comparison.result, {*comparison.missing}
    adoption, cast, after = plan.architecture.converter, plan.cast, result.state_dict()
    before = source.state_dict() if adoption is None else adoption.state_dict(source)
    if adoption is not None:
        missing = {adoption.renamed(name) for name in missing}
    chosen = {  # without what is random, and what belonged to a mechanism that was not chosen
        name: value for name, value in before.items() if name not in missing and (name in after or f".{MECHANISM_ATTRIBUTE}." not in name)
    }
    tied = {*tied_weights(result)}
    new = after.keys() - before.keys() - missing - tied
    attached = tuple(f"{place}." for place in (*attached_mechanisms(result), *attached_memory(result)))
    lost = (chosen.keys() - after.keys()) | (comparison.lacking - missing - tied)
    wrong = [f"{name} is missing" for name in sorted(lost)]
    wrong += [f"{name} was not planned" for name in sorted(new) if not name.startswith(attached)]
    for name in chosen.keys() & after.keys():
        value = chosen[name]
        rounded = value.to(cast).to(value.dtype) if cast is not None and value.is_floating_point() else value
        wrong += [f"{name} {problem}" for problem in _differences(plan, name, rounded, after[name])]
    for place, mechanism in attached_mechanisms(result).items():
        layer = result.get_submodule(place.partition(f".{MECHANISM_ATTRIBUTE}")[0])
        for name, copied in copied_parameters(layer, mechanism.traits.copies).items():
            parameter = mechanism.get_parameter(name)
            if f"{place}.{name}" in new and not _same_bytes(copied(layer.get_parameter(copied.name)).view_as(parameter), parameter):
                wrong.append(f"{place}.{name} is no copy of its layer's values")
    infinite = sorted(name for name, value in after.items() if not all_finite({name: value}))
    extended = sum(after[name].shape != value.shape for name, value in chosen.items() if name in after)
    counts = {"kept": len(chosen) - extended, "extended": extended, "new": len(new)}
    detail = f"{len(before)} tensors of the source accounted for: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}"
    if wrong:
        detail = f"{len(wrong)} tensors are wrong, the first: {wrong[0]}"
    elif infinite:
        cause = "of the source hold NaN or infinite numbers, so no output can be compared (--no-verify converts them)"
        if all_finite({name: before[name] for name in infinite if name in before}):
            cause = f"are too large for {str(cast).removeprefix('torch.')} and became infinite"
        detail = f"{len(infinite)} tensors {cause}, the first: {infinite[0]}"
    values = {**counts, "wrong": wrong[:20], "not_finite": infinite[:20]}
    return [Check("tensors", FAILED if wrong or infinite else PASSED, detail, values)]


def _differences(plan: ConversionPlan, name: str, old: Tensor, new: Tensor) -> Iterator[str]:
    """What is wrong with the written tensor ``new``, whose values should be ``old`` or made of them."""
    for tower, part in ({} if plan.generic else plan.towers).items():
        if name.startswith(prefix := tower_prefix(tower)):
            yield from _differences(part, name.removeprefix(prefix), old, new)
            return
    table, rule = plan.architecture.family.table(name), plan.positions
    if table is None or not table.matches(name) or (new.shape == old.shape and rule not in DROPPED):
        if not _same_bytes(old, new):
            yield "differs from the source's values"
        return
    offset = table.offset_rows(plan.config)
    rows = offset + unchanged_rows(rule, len(old) - offset)
    if not _same_bytes(new[:rows], old[:rows]):
        yield f"lost its first {rows} rows"
    if rule in DROPPED and not bool((new[offset:] == new[-1]).all()):
        yield "must have equal rows"
    expected = extend_table(old, len(new), offset=offset, strategy=rule)
    if not _same_bytes(new, expected) and (rule == "tile" or not torch.allclose(new, expected, ROUNDED, ROUNDED * float(old.std()))):
        yield "differs from the source's values"


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    a, b = (values.detach().contiguous().reshape(-1).view(torch.uint8) for values in (a, b))
    return torch.equal(a, b)


# Outputs of models of texts


def check_texts(comparison: Comparison) -> list[Check]:
    """All checks of outputs of a model of texts.

    A loss or embeddings are measured on the source before it is rounded, and on the result only if its outputs pass.
    """
    plan, source, result, text = comparison.plan, comparison.source, comparison.result, comparison.inputs
    lengths = choose_lengths(plan, text, comparison.given_text)
    pooling = sentence_pooling(comparison.folder) if plan.decoder is None else None  # sentence encoders have no decoder
    # function of a model and of the tokens that it reads at once
    measure: Callable[[Any, int], Any] = partial(text_losses, plan, text, lengths)
    if pooling is not None:
        measure = partial(embeddings, pooling, text, lengths)
    unmeasured = why_not_measured(plan, text, lengths, pooling)
    before: Any = measure(source, lengths.chunk) if unmeasured is None else None
    plan.round_source(source)
    if plan.architecture.converter is not None:
        checks = compare_adopted(comparison, lengths.old)
    else:
        checks = compare_lengths(comparison, lengths)
    if any(check.status == FAILED for check in checks):
        return checks

    after: Any = None
    states = dict[str, Any]()
    if unmeasured is None:  # the pass that computes losses of the longest text also gives its hidden states
        hook = result.base_model.register_forward_hook(lambda module, arguments, returned: states.update(returned))
        after = measure(result, lengths.read)
        hook.remove()
    decoded = None if plan.decoder is None else min(plan.decoder.old, DECODED)
    if pooling is not None or lengths.read != lengths.new or not states:
        states = outputs(result.base_model, text.passages(1, lengths.new), decoder_tokens=decoded)
    tensors = {name: state for name, state in states.items() if isinstance(state, Tensor)}
    shortened = "" if lengths.new == plan.new_length else f" (of {plan.new_length}: a large model, shortened)"
    what = f"hidden states at {lengths.new} tokens{shortened}"
    checks.append(check_finite("finite at the new length", what, tensors, {"length": lengths.new}))
    with attending(result, MECHANISMS):
        checks.append(check_padding(plan, result.base_model, text.passages(1, lengths.padded), decoded))
    if unmeasured is not None or any(check.status == FAILED for check in checks):
        return [*checks, *(unmeasured or [])]
    if pooling is None:
        return [*checks, check_loss(plan, text, lengths, before, after, given_text=comparison.given_text)]
    document = None
    if not lengths.at_once:
        of_document = states if lengths.read == lengths.new else outputs(result.base_model, text.passages(1, lengths.read))
        document = of_document["last_hidden_state"]
    return [*checks, check_embeddings(plan, text, lengths, pooling, before, after, document)]


def why_not_measured(plan: ConversionPlan, text: VerificationText, lengths: Lengths, pooling: SentencePooling | None) -> list[Check] | None:
    """The checks (often none) of a result whose loss or embeddings are not measured; ``None`` if they are."""
    old, new, long_class = plan.old_length, plan.new_length, plan.architecture.long_class
    if lengths.covered == new:
        return []  # the result is the source at every length
    name, possible, needed = LOSS, lengths.read, lengths.needed
    if pooling is not None:
        name, possible, needed = EMBEDDINGS, len(passages(text, lengths)), 2 * LENGTHS[0]
    predicts = auto_class_name(plan.config, long_class) in HEADS and plan.skeleton.get_output_embeddings() is not None  # not ELECTRA's
    if pooling is None and (not predicts or plan.decoder is not None):  # its decoder predicts its own output
        problem = f"the source reads no more than {old:,} tokens, and {long_class} has no loss without labels"
        would_tell = f"its scores on labelled texts of up to {new:,} tokens (longattn evaluate)"
        return [undecided(BEYOND, problem, would_tell)] if new > old else []
    if pooling is None and plan.architecture.converter is not None and new < 2 * old:
        return []  # outputs are compared anyway, and the length grows too little
    problem, would_tell = f"{needed:,} tokens would take too long for a model of this size", f"{READABLE_TEXT}, which allows more time,"
    if text.tokenizer is None:
        problem, would_tell = f"{text.why_seeded}, and real text is needed", text.would_be_real
    elif pooling is None and not plan.shape.causal and text.tokenizer.mask_token_id is None:
        problem, would_tell = "the tokenizer has no mask token", "a tokenizer with the token that the source was trained on"
    elif possible:
        return None
    elif text.real_tokens() < needed:
        problem, would_tell = f"{needed:,} tokens are needed, and the text has {text.real_tokens():,}", LONGER_TEXT
    return [undecided(name, problem, would_tell)]


@contextlib.contextmanager
def attending(model: Any, attention: str) -> Iterator[None]:
    """Run the result with :data:`AS_CONFIGURED`, :data:`BASE`, or any other name for its mechanisms."""
    implementation = attention_implementation(model.config) or BACKEND
    if attention == BASE:
        model.use_base_attention()
    for mechanism in attached_mechanisms(model).values():
        mechanism.ignores_exact_length = attention != AS_CONFIGURED
    yield
    for mechanism in attached_mechanisms(model).values():
        mechanism.ignores_exact_length = False
    if attention == BASE:
        model.set_attn_implementation(implementation)


def check_finite(name: str, what: str, outputs: Mapping[str, Tensor], values: dict[str, Any] | None = None) -> Check:
    """Check that ``outputs`` are finite."""
    finite = all_finite(outputs)
    return Check(name, PASSED if finite else FAILED, f"{what} are {'' if finite else 'not '}finite", values or {})


def compare_lengths(comparison: Comparison, lengths: Lengths) -> list[Check]:
    """Compare outputs up to the old length: where they must be equal, and by how much others differ."""
    plan, (source, result), text = comparison.plan, comparison.compared, comparison.inputs
    old, change = lengths.old, plan.position_change
    covered, short = min(lengths.covered, old), min(plan.short_texts.length, old)
    unchanged = min(plan.unchanged_tokens, old) if plan.unchanged_tokens > 1 else 0  # though positions change longer texts
    limit = None if plan.decoder is None or plan.architecture.decoder_reads_text else plan.decoder.old  # of the source's decoder
    exact = covers(decoder_mechanisms(plan), min(short, limit or short), True)
    every = ", which is the source's attention at every length" if lengths.covered == plan.new_length else ""
    comparisons = [  # name, length, attention of the result, reason why outputs may differ
        (SHORT_TEXTS, short, AS_CONFIGURED, plan.short_texts.reason or ("" if exact else "the decoder's mechanism does not cover it")),
        ("equal where positions are unchanged", unchanged, BASE if unchanged > covered else MECHANISMS, ""),
        ("equal where the mechanism covers the input", covered, MECHANISMS + every, change),
    ]
    if covered < old:
        differs = f"covers inputs up to {covered} tokens" if covered else "is full attention at no length"
        if short == old:
            differs += f", but only texts of more than {plan.short_texts.length} tokens are read by it"
        comparisons += [
            ("equal at the old length with full attention", old, BASE, change),
            ("at the old length", old, MECHANISMS, " and ".join(filter(None, [change, f"the mechanism {differs}"]))),
        ]
    checks, expected = [], dict[int, dict[str, Tensor]]()
    for name, length, attention, why in comparisons:
        if not length:
            continue
        ids = text.tokens(length)
        if length not in expected:
            expected[length] = outputs(source, ids, decoder_tokens=limit)
        with attending(result, attention):
            difference = Difference.of(expected[length], outputs(result, ids, decoder_tokens=limit))
        detail = f"{comparison.outputs} at {length} tokens, {attention.format(plan.short_texts.length)}: largest difference from the source"
        values = {"length": length, "tokens": ids.numel(), "outputs": sorted(expected[length])}
        check = equality(name, detail, difference, values, why)
        used = attention in (AS_CONFIGURED, BASE) or length > plan.short_texts.length  # else only the check runs it
        checks.append(replace(check, status=MEASURED) if check.status == NEEDS_TRAINING and not used else check)
    return checks


def compare_adopted(comparison: Comparison, length: int) -> list[Check]:
    """Compare a Longformer, LED or BigBird with the result, with padding and global tokens."""
    plan, (source, result), text = comparison.plan, comparison.compared, comparison.inputs
    architecture, adoption = plan.architecture, plan.architecture.converter
    assert adoption is not None
    takes_globals = any(layer.traits.takes_globals for layer in layer_mechanisms(plan.attention, plan.shape, plan.new_length))
    why = plan.position_change if plan.attention == architecture.original_attention() else "the attention differs from the source's"
    reference = f"transformers' {adoption.model_type}"
    checks = [
        probe.check("equal to the source", source, result, reference, why)
        for probe in adoption.probes(architecture.original_config, architecture.source_class, text, length)
        if takes_globals or "global_attention_mask" not in probe.inputs
    ]
    lacks = " (the source has no weights for its head)" * comparison.headless
    return [replace(check, detail=f"{check.detail}{lacks}") for check in checks]


def check_padding(plan: ConversionPlan, backbone: Any, ids: Tensor, decoded: int | None) -> Check:
    """Check that padding changes no hidden state of a text, on either side.

    Args:
        ids: ``(1, N)``, the text, which is shortened and padded to N tokens again. decoded: tokens of a decoder.
    """
    name, length = "padding changes nothing", ids.shape[1]
    short, layers = length - PADDING, layer_mechanisms(plan.attention, plan.shape, length)
    if short < 1:
        return Check(name, SKIPPED, f"{length} tokens are too few for padding")
    if not all(layer.traits.ignores_padding for layer in layers):
        return Check(name, SKIPPED, "the mechanism's options count padding, for equality with another implementation")
    takes_globals = any(layer.traits.takes_globals for layer in layers)
    places = "position_ids" in inspect.signature(type(backbone).forward).parameters
    gaps = {"right": (0, PADDING), "left": (PADDING, 0)}
    sides = [*gaps] if places else ["right"]  # without position_ids, left padding shifts the text
    passes_positions = places and getattr(backbone, "exact_length", None) is None  # otherwise the model counts from the text
    first_id = max((table.first_id(plan.config) for table in plan.architecture.family.position_tables), default=0)

    def pad(values: Tensor, fill: int = 0) -> Tensor:
        return torch.cat([functional.pad(values, (*(0, 0) * (values.dim() - 2), *gaps[side]), value=fill) for side in sides])

    def hidden(ids: Tensor, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        if passes_positions:  # counted over real tokens: padding repeats the last position, or the first one in front of the text
            places = (arguments["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            arguments = {**arguments, "position_ids": places + first_id}
        returned = outputs(backbone, ids, decoder_tokens=decoded, **arguments)
        return {key: state for key, state in returned.items() if key.endswith("last_hidden_state")}

    alone = ids[:, :short]
    arguments = {"attention_mask": torch.ones_like(alone), **plan.architecture.family.rule.further_inputs(plan.config, *alone.shape)}
    if takes_globals:
        marks = torch.zeros_like(alone)
        marks[:, :8] = marks[:, short // 2] = 1
        arguments["global_attention_mask"] = marks
    fill = plan.config.pad_token_id if isinstance(plan.config.pad_token_id, int) and plan.config.pad_token_id >= 0 else 0
    unpadded = hidden(alone, arguments)
    padded = hidden(pad(alone, fill), {key: pad(value) for key, value in arguments.items()})
    if not unpadded:
        return Check(name, SKIPPED, "the base returns no hidden states")
    real = [slice(short), slice(-short, None)]
    difference = Difference.of(
        {f"{key}, {side}": state[0] for side in sides for key, state in unpadded.items()},
        {f"{key}, {side}": state[row, real[row]] for row, side in enumerate(sides) for key, state in padded.items()},
    )
    detail = (
        f"a text of {short} tokens alone, and padded to {length} on the {' and on the '.join(sides)}"
        f"{' with global tokens' * takes_globals}{' and position_ids from the text' * passes_positions}: largest difference"
    )
    values = {"sides": sides, "length": length, "tokens": short}
    return equality(name, detail, difference if all_finite(padded) else Difference(output="padding"), values)
