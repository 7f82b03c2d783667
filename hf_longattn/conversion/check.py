"""Check the result of a conversion: source and result are loaded, and their tensors and outputs compared."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, LongAttentionError, in_a_line
from ..evaluation.pooling import sentence_pooling
from ..inputs.common.running import all_finite
from ..inputs.common.sized import SizedKind
from ..inputs.plain import PlainKind
from ..inputs.text import VerificationText
from ..inputs.towers import TowersKind
from ..loading import tied_weights
from ..mechanisms.common.base import Mechanism
from ..modeling.attach.attention_sites import MECHANISM_ATTRIBUTE, copied_parameters
from ..modeling.family.config import attention_implementation
from ..positions.tables import DROPPED, extend_table, unchanged_rows
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, PASSED, SKIPPED, Check, Difference, equality
from .architectures import attached_mechanisms, attached_memory
from .check_embeddings import check_embeddings, embeddings, passages, source_embeddings, why_no_embeddings
from .check_loss import check_loss, text_losses, why_no_loss
from .flops import layer_mechanisms
from .lengths import Lengths, choose_lengths, decoder_covers
from .model_loading import outputs
from .plan import ConversionPlan
from .report import POSITIONS, READY, SHORT_TEXTS, UNKNOWN, VERDICT, verdict_check
from .sources import tower_prefix
from .verify_generic import check_generic
from .verify_sizes import check_sizes
from .verify_towers import check_together

Progress = Callable[[str, int, int], None]

PADDING = 37
"""Tokens of padding in the padding check: not a multiple of any block size."""
DECODED = 32
"""Maximum number of decoder tokens of an encoder-decoder in the checks at the new length."""
HIDDEN_STATES = "last_hidden_state"
"""Ending of the names of outputs with a vector for every token."""
ROUNDED = 1e-2
"""Maximum relative difference of computed position rows from their values before rounding; bf16 has 4e-3."""


def check_result(
    plan: ConversionPlan,
    source: nn.Module,
    result: nn.Module,
    missing: tuple[set[str], set[str]],
    folder: Path,
    inputs: Any,
    *,
    given_text: bool = False,
    progress: Progress | None = None,
) -> list[Check]:
    """Check a written result: its tensors, tokenizer or processor, and outputs. Ends at the first step that fails.

    Args:
        source: a model of the source's class, loaded in fp32; rounded in place if the plan casts. result: loaded from ``folder`` in fp32.
        missing: names of parameters that the source's files lack, and of those that the written files lack.
        inputs: for running the models. given_text: they are a text of the user's, so more time is spent on measuring.
        progress: called as progress("verify", done, total).

    Raises:
        CheckpointError: a model does not run.
    """
    steps = [
        partial(check_tensors, plan, source, result, *missing),
        partial(plan.kind.check_reader, plan, folder, inputs),
        *_output_steps(plan, source, result, missing[0], folder, inputs, given_text),
    ]
    return labelled(plan, run_steps(steps, progress))


def run_steps(steps: Sequence[Callable[[], list[Check]]], progress: Progress | None = None) -> list[Check]:
    """The checks of all steps, up to the first step that fails.

    Raises:
        CheckpointError: a step raises an error.
    """
    checks: list[Check] = []
    for done, step in enumerate(steps):
        if progress is not None:
            progress("verify", done, len(steps))
        try:
            checks += step()
        except LongAttentionError:
            raise
        except Exception as error:  # models raise any type of error
            why = f"{type(error).__name__}: {in_a_line(error)}"
            raise CheckpointError(
                f"Verification failed, so nothing was kept: source or result does not run ({why}); --no-verify leaves the check out."
            ) from error
        if any(check.status == FAILED for check in checks):
            return checks
    if progress is not None:
        progress("verify", len(steps), len(steps))
    return checks


def _output_steps(
    plan: ConversionPlan, source: Any, result: Any, missing: set[str], folder: Path, inputs: Any, given_text: bool
) -> Iterator[Callable[[], list[Check]]]:
    """The steps that run source and result, by their kind of input."""
    for name, part in ({} if plan.generic else plan.towers).items():  # check_generic compares its towers itself
        prefix = tower_prefix(name)
        towers = (model.get_submodule(prefix.rstrip(".")) for model in (source, result))
        lacking = {key.removeprefix(prefix) for key in missing if key.startswith(prefix)}
        for step in _output_steps(part, *towers, lacking, folder, inputs[name], given_text):
            yield lambda step=step, name=name: [replace(check, name=f"{name}: {check.name}") for check in step()]
    kind = plan.kind
    for other, check in ((SizedKind, check_sizes), (PlainKind, check_generic), (TowersKind, check_together)):
        if isinstance(kind, other):
            yield partial(check, kind, plan, folder, inputs, None, given_text)
            return
    yield partial(check_texts, plan, source, result, missing, folder, inputs, given_text=given_text)


def labelled(plan: ConversionPlan, checks: Sequence[Check]) -> list[Check]:
    """The checks, and the plan's warnings as checks. Warnings get the status of the check that decides on training.

    If no check decides, or the one cannot tell, the status of differing outputs and of untrained positions is "needs training".
    """
    deciding = verdict_check(checks)
    label = NEEDS_TRAINING if deciding is None or deciding.values[VERDICT] == UNKNOWN else deciding.status
    sentences = [str(warning).rstrip(".") for warning in plan.warnings]
    if deciding is not None and label == MEASURED:
        sentences = [f"{warning.problem}, but the result is {READY} ({deciding.name})" for warning in plan.warnings]
    warned = [Check(POSITIONS, label, sentence) for sentence in sentences]
    return [*(replace(check, status=label) if check.status == NEEDS_TRAINING else check for check in checks), *warned]


# Tensors


def check_tensors(plan: ConversionPlan, source: Any, result: Any, missing: set[str], lacking: set[str]) -> list[Check]:
    """Compare every tensor of the result with the source's.

    They have the same bytes, rounded if the plan casts. Position tables keep their first rows, or have equal rows if the rule drops them.
    Further tensors belong to mechanisms or memory tokens.

    Args:
        missing, lacking: names of parameters that the source's and the result's files lack.
    """
    adoption = plan.architecture.converter
    before = source.state_dict() if adoption is None else adoption.state_dict(source)
    if adoption is not None:
        missing = {adoption.rename(name, source.config).target for name in missing}
    after, cast = result.state_dict(), plan.cast
    wrong = [f"{name} is missing" for name in sorted(lacking - missing - {*tied_weights(result)})]
    counts: Counter[str] = Counter()
    for name, original in before.items():
        written = after.get(name)
        if name in missing or (written is None and f".{MECHANISM_ATTRIBUTE}." in name):
            continue  # initialised at random, or a parameter of a mechanism that was not chosen
        value = original.to(cast).to(original.dtype) if cast is not None and original.is_floating_point() else original
        if written is None:
            wrong.append(f"{name} is missing")
        elif (table := _position_table(plan, name)) is not None:
            wrong += [f"{name} {problem}" for problem in _wrong_rows(value, written, *table)]
        elif not _same_bytes(value, written):
            wrong.append(f"{name} differs from the source's values")
        counts["kept" if written is not None and written.shape == value.shape else "extended"] += 1
    attached = {**attached_mechanisms(result), **attached_memory(result)}
    new = [name for name in after if name not in before and name not in missing]
    counts["new"] = len(new)
    wrong += [f"{name} was not planned" for name in new if not name.startswith(tuple(f"{place}." for place in attached))]
    for place, mechanism in attached_mechanisms(result).items():
        layer = result.get_submodule(place.partition(f".{MECHANISM_ATTRIBUTE}")[0])
        for name, copied in copied_parameters(layer, mechanism.traits.copies).items():
            parameter = mechanism.get_parameter(name)
            if f"{place}.{name}" in new and not _same_bytes(copied(layer.get_parameter(copied.name)).view_as(parameter), parameter):
                wrong.append(f"{place}.{name} is no copy of its layer's values")

    infinite = sorted(name for name, value in after.items() if value.is_floating_point() and not _is_finite(value))
    values = {**{action: counts[action] for action in ("kept", "extended", "new")}, "wrong": wrong[:20], "not_finite": infinite[:20]}
    if wrong:
        return [Check("tensors", FAILED, f"{len(wrong)} tensors are wrong, the first: {wrong[0]}", values)]
    if infinite:
        some = ", ".join(infinite[:5]) + (f" and {len(infinite) - 5} more" if len(infinite) > 5 else "")
        detail = (
            f"{len(infinite)} tensors of the source hold NaN or infinite numbers: {some}; so no output can be compared"
            " (--no-verify converts them unchanged)"
        )
        if all(name in before and _is_finite(before[name]) for name in infinite):
            detail = (
                f"{len(infinite)} tensors are too large for {str(plan.config.dtype).removeprefix('torch.')} and became infinite: {some}"
            )
        return [Check("tensors", FAILED, detail, values)]
    listed = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    return [Check("tensors", PASSED, f"{len(before)} tensors of the source accounted for: {listed}", values)]


def _position_table(plan: ConversionPlan, name: str) -> tuple[int, str] | None:
    """Rows before the first position of the table ``name``, and the rule for its positions. ``None`` for other tensors."""
    for tower, part in plan.towers.items():
        if not plan.generic and name.startswith(prefix := tower_prefix(tower)):
            return _position_table(part, name.removeprefix(prefix))
    table = plan.architecture.family.table(name) or plan.plain.table
    return (table.offset_rows(plan.config), plan.positions) if table is not None and table.matches(name) else None


def _wrong_rows(old: Tensor, new: Tensor, offset: int, rule: str) -> Iterator[str]:
    """Errors of the written position table ``new``."""
    rows = offset + unchanged_rows(rule, len(old) - offset)
    if not _same_bytes(new[:rows], old[:rows]):
        yield f"lost its first {rows} rows"
    if rule in DROPPED and not bool((new[offset:] == new[-1]).all()):
        yield "must have equal rows"
    expected = extend_table(old, len(new), offset=offset, strategy=rule) if rule in DROPPED or len(new) != len(old) else old
    if not _same_bytes(new, expected) and (rule == "tile" or not torch.allclose(new, expected, ROUNDED, ROUNDED * float(old.std()))):
        yield "differs from the source's values"


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    a, b = (values.detach().contiguous().reshape(-1).view(torch.uint8) for values in (a, b))
    return torch.equal(a, b)


def _is_finite(values: Tensor) -> bool:
    return values.numel() == 0 or all(bool(bound.isfinite()) for bound in torch.aminmax(values))  # NaN passes through


# Outputs of models of texts


def check_texts(
    plan: ConversionPlan, source: Any, result: Any, missing: set[str], folder: Path, text: VerificationText, *, given_text: bool = False
) -> list[Check]:
    """All checks of outputs of a model of texts.

    A loss or embeddings are measured on the source before it is rounded, and on the result only if its outputs pass.

    Args:
        source: is rounded in place if the plan casts. missing: names of parameters that its files lack.
        text: the models run on parts of it.
        given_text: the text is the user's, so more time is spent on measuring.
    """
    lengths = choose_lengths(plan, text, result, given_text=given_text)
    pooling = sentence_pooling(folder) if plan.decoder is None else None  # sentence encoders have no decoder
    skipped: list[Check] | None = []
    if not lengths.covered == lengths.old == plan.new_length:  # else outputs are compared at every length that the result reads
        skipped = why_no_embeddings(text, lengths) if pooling else why_no_loss(plan, text, lengths, result, given_text)
    if skipped is None:
        if pooling is None:
            old_losses = text_losses(plan, source, text, lengths, lengths.chunk)
        else:
            of_source = source_embeddings(source, text, pooling, lengths)
    if plan.cast is not None:
        for value in source.state_dict().values():
            value.copy_(value.to(plan.cast) if value.is_floating_point() else value)

    headless = bool(missing - {*tied_weights(source)})
    parts = (source.base_model, result.base_model) if headless else (source, result)
    compare = compare_lengths if plan.architecture.converter is None else compare_adopted
    checks = compare(plan, *parts, text, lengths, " (the source has no weights for its head)" if headless else "")

    decoded = None if plan.decoder is None else min(plan.decoder.old, DECODED)
    ids = text.passages(1, lengths.new)
    states = _hidden_states(outputs(result.base_model, ids, decoder_tokens=decoded))
    finite = all_finite(states)
    at = f"at {lengths.new} tokens" + ("" if lengths.new == plan.new_length else f" (of {plan.new_length}: a large model, shortened)")
    detail = f"hidden states {at} are {'' if finite else 'not '}finite"
    values = {"length": lengths.new, "tokens": ids.numel()}
    checks.append(Check("finite at the new length", PASSED if finite else FAILED, detail, values))
    with attending(result, MECHANISMS):
        checks.append(check_padding(plan, result.base_model, text.passages(1, lengths.padded), decoded))
    if any(check.status == FAILED for check in checks) or skipped is not None:
        return [*checks, *(skipped or [])]

    if pooling is None:
        new_losses = text_losses(plan, result, text, lengths, lengths.read)
        return [*checks, check_loss(plan, text, lengths, old_losses, new_losses, given_text=given_text)]
    document = states[HIDDEN_STATES]
    if lengths.read != lengths.new and not lengths.at_once:
        document = outputs(result.base_model, text.passages(1, lengths.read))[HIDDEN_STATES]
    of_result = embeddings(result, text, pooling, passages(text, lengths))
    return [*checks, check_embeddings(plan, text, lengths, pooling, of_source, of_result, document)]


AS_CONFIGURED, MECHANISMS, BASE = "as for texts of up to {}", "long attention", "full attention instead of the mechanism"
"""The attention of the result in a comparison: as it is; by mechanisms also for texts of up to ``exact_length``; or the source's."""


@contextlib.contextmanager
def attending(model: Any, attention: str) -> Iterator[None]:
    """Run the result with one of the attentions above."""
    implementation = attention_implementation(model.config) or "longattn"
    if attention == BASE:
        model.use_base_attention()
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    for mechanism in mechanisms:
        mechanism.ignores_exact_length = attention != AS_CONFIGURED
    yield
    for mechanism in mechanisms:
        mechanism.ignores_exact_length = False
    if attention == BASE:
        model.set_attn_implementation(implementation)


def compare_lengths(plan: ConversionPlan, source: Any, result: Any, text: VerificationText, lengths: Lengths, head: str) -> list[Check]:
    """Compare outputs up to the old length: where they must be equal, and by how much others differ.

    Args:
        head: a note on a head that is not compared.
    """
    old, change = lengths.old, plan.position_change
    covered, short = min(lengths.covered, old), min(plan.short_texts.length, old)
    unchanged = min(plan.unchanged_tokens, old) if plan.unchanged_tokens > 1 else 0  # though positions change longer texts
    limit = None if plan.decoder is None or plan.architecture.decoder_reads_text else plan.decoder.old  # of the source's decoder
    of_decoder = "" if decoder_covers(plan, short if limit is None else min(short, limit)) else "the decoder's mechanism does not cover it"
    every = ", which is the source's attention at every length" if lengths.covered == plan.new_length else ""
    comparisons = [  # name, length, attention of the result, reason why outputs may differ
        (SHORT_TEXTS, short, AS_CONFIGURED, plan.short_texts.reason or of_decoder),
        ("equal where positions are unchanged", unchanged if unchanged <= covered else 0, MECHANISMS, ""),
        ("equal where the mechanism covers the input", covered, MECHANISMS + every, change),
    ]
    if covered < old:
        covers = f"covers inputs up to {covered} tokens" if covered else "is full attention at no length"
        if short == old:
            covers += f", but only texts of more than {plan.short_texts.length} tokens are read by it"
        why = " and ".join(filter(None, [change, f"the mechanism {covers}"]))
        comparisons += [
            ("equal where positions are unchanged", unchanged if unchanged > covered else 0, BASE, ""),
            ("equal at the old length with full attention", old, BASE, change),
            ("at the old length", old, MECHANISMS, why),
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
        what = f"{'hidden states' if head else 'outputs'}{head} at {length} tokens, {attention.format(plan.short_texts.length)}"
        values = {"length": length, "tokens": ids.numel(), "outputs": sorted(expected[length])}
        check = equality(name, f"{what}: largest difference from the source", difference, values, why)
        used = attention in (AS_CONFIGURED, BASE) or length > plan.short_texts.length  # else only the check runs it
        checks.append(replace(check, status=MEASURED) if check.status == NEEDS_TRAINING and not used else check)
    return checks


def compare_adopted(plan: ConversionPlan, source: Any, result: Any, text: VerificationText, lengths: Lengths, head: str) -> list[Check]:
    """Compare a Longformer, LED or BigBird with the result, with padding and with global tokens. All layers' hidden states as well.

    Args:
        head: a note on a head that is not compared.
    """
    architecture = plan.architecture
    assert architecture.converter is not None
    takes_globals = any(layer.traits.takes_globals for layer in layer_mechanisms(plan.attention, plan.shape, plan.new_length))
    same = plan.attention == architecture.original_attention()
    checks = []
    for probe in architecture.converter.probes(architecture.original_config, architecture.source_class, text, lengths.old):
        if "global_attention_mask" in probe.inputs and not takes_globals:
            continue
        (difference, common), name = probe.compare(source, result), f"equal to the source, {probe.name}"
        named = [output for output in common if "hidden_states[" not in output]
        detail = (
            f"{', '.join([*named, f'{len(common) - len(named)} hidden states'])}{head} of two texts of up to {lengths.old} tokens, "
            f"{probe.name}: largest difference from transformers' {plan.source.config['model_type']}"
        )
        values = {"length": lengths.old, "tokens": int(probe.real.sum()), "outputs": common}
        checks.append(
            equality(name, detail, difference, values, plan.position_change if same else "the attention differs from the source's")
        )
    return checks


def check_padding(plan: ConversionPlan, backbone: Any, ids: Tensor, decoded: int | None) -> Check:
    """Check that padding changes no hidden state of a text, on either side.

    Args:
        ids: ``(1, N)``, the text, which is shortened and padded to N tokens again. decoded: tokens of a decoder.
    """
    name, length = "padding changes nothing", ids.shape[1]
    short, layers = max(1, length - PADDING), layer_mechanisms(plan.attention, plan.shape, length)
    if short == length:
        return Check(name, SKIPPED, f"{length} tokens are too few for padding")
    if not all(layer.traits.ignores_padding for layer in layers):
        return Check(name, SKIPPED, "the mechanism's options count padding, for equality with another implementation")
    takes_globals = any(layer.traits.takes_globals for layer in layers)
    places = "position_ids" in inspect.signature(type(backbone).forward).parameters
    sides = ("right", "left") if places else ("right",)  # without position_ids, left padding shifts the text
    passes_positions = places and getattr(backbone, "exact_length", None) is None  # otherwise the model counts from the text
    first_id = max((table.first_id(plan.config) for table in plan.architecture.family.position_tables), default=0)
    gaps = {"right": (0, length - short), "left": (length - short, 0)}

    def pad(values: Tensor, fill: int = 0) -> Tensor:
        return torch.cat([nn.functional.pad(values, (*(0, 0) * (values.dim() - 2), *gaps[side]), value=fill) for side in sides])

    def masked(mask: Tensor, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        if passes_positions:  # counted over real tokens: padding repeats the last position, or the first one in front of the text
            arguments = {**arguments, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0) + first_id}
        return {"attention_mask": mask, **arguments}

    alone = ids[:, :short]
    further = plan.architecture.family.rule.further_inputs(plan.config, *alone.shape)
    if takes_globals:
        marks = torch.zeros_like(alone)
        marks[:, : min(short, 8)] = 1
        marks[:, short // 2] = 1
        further = {**further, "global_attention_mask": marks}
    fill = plan.config.pad_token_id if isinstance(plan.config.pad_token_id, int) and plan.config.pad_token_id >= 0 else 0
    arguments = masked(torch.ones_like(alone), further)
    unpadded = _hidden_states(outputs(backbone, alone, decoder_tokens=decoded, **arguments))
    arguments = masked(pad(torch.ones_like(alone)), {key: pad(value) for key, value in further.items()})
    padded = _hidden_states(outputs(backbone, pad(alone, fill), decoder_tokens=decoded, **arguments))
    if not any(output.endswith(HIDDEN_STATES) for output in unpadded):
        return Check(name, SKIPPED, f"the base returns no hidden states, but {', '.join(unpadded) or 'nothing'}")
    real = {"right": slice(short), "left": slice(-short, None)}
    expected = {output: state[0] for output, state in unpadded.items()}
    differences = {
        side: Difference.of(expected, {output: state[row, real[side]] for output, state in padded.items()})
        for row, side in enumerate(sides)
    }
    detail = (
        f"a text of {short} tokens alone, and padded to {length} on the {' and on the '.join(sides)}"
        f"{' with global tokens' if takes_globals else ''}{' and position_ids from the text' * passes_positions}: largest difference"
    )
    values = {**{side: difference.largest for side, difference in differences.items()}, "length": length, "tokens": short}
    worst = Difference.worst(differences.values()) if all_finite(padded) else Difference(output="padding")
    return equality(name, detail, worst, values)


def _hidden_states(returned: dict[str, Tensor]) -> dict[str, Tensor]:
    """The hidden states among outputs; all outputs if there are none."""
    return {name: state for name, state in returned.items() if name.endswith(HIDDEN_STATES)} or returned
