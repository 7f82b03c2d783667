"""Check the outputs of a converted model of texts.

Up to the source's length they must equal the source's, or the check says by how much they differ. At the new length, hidden states are
finite, and padding changes none. At last the loss or the embeddings are measured (:mod:`.check_purpose`).
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..evaluation.flops import layer_mechanisms
from ..evaluation.pooling import sentence_pooling
from ..inputs.running import all_finite
from ..inputs.tokenizer import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..modeling.family.registration import auto_class_name
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, SKIPPED, Check, Difference, equality
from .check import AS_CONFIGURED, BASE, MECHANISMS, Comparison, attending, check_finite
from .check_purpose import Embeddings, LanguageLoss, Lengths, choose_lengths, covers, decoder_mechanisms, undecided
from .folders import SHORT_TEXTS
from .model_loading import outputs
from .plan import ConversionPlan

HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining")
BEYOND = "beyond the old length"
"""Name of the check of texts that the source cannot read, for heads that nothing is measured of."""
PADDING = 37
"""Tokens of padding in the padding check: not a multiple of any block size."""
DECODED = 32
"""Maximum number of decoder tokens of an encoder-decoder in the checks at the new length."""


def check_texts(comparison: Comparison) -> list[Check]:
    """All checks of outputs of a model of texts.

    A loss or embeddings are measured on the result only if its outputs pass.
    """
    plan, source, result, text = comparison.plan, comparison.source, comparison.result, comparison.inputs
    lengths = choose_lengths(plan, text)
    pooling = sentence_pooling(comparison.folder) if plan.decoder is None else None  # sentence encoders have no decoder
    purpose: Any = LanguageLoss(plan, text, lengths)
    if pooling is not None:
        purpose = Embeddings(plan, text, lengths, pooling)
    checks = compare_lengths(comparison, lengths) if plan.architecture.converter is None else compare_adopted(comparison, lengths.old)
    if any(check.status == FAILED for check in checks):
        return checks

    unmeasured, states = why_not_measured(plan, text, purpose), dict[str, Any]()
    if unmeasured is None:  # the last pass reads the longest text, whose hidden states are checked as well
        before = purpose.measure(source, lengths.chunk)
        hook = result.base_model.register_forward_hook(lambda module, arguments, returned: states.update(returned))
        after = purpose.measure(result, lengths.read)
        hook.remove()
    decoded = None if plan.decoder is None else min(plan.decoder.old, DECODED)
    if not states or lengths.read != lengths.new or (pooling is not None and lengths.at_once):
        states = outputs(result.base_model, text.passages(1, lengths.new), decoder_tokens=decoded)
    tensors = {name: state for name, state in states.items() if isinstance(state, Tensor)}
    shortened = "" if lengths.new == plan.new_length else f" (of {plan.new_length}: a large model, shortened)"
    what = f"hidden states at {lengths.new} tokens{shortened}"
    checks.append(check_finite("finite at the new length", what, tensors, {"length": lengths.new}))
    with attending(result, MECHANISMS):
        checks.append(check_padding(plan, result.base_model, text.passages(1, lengths.padded), decoded))
    if unmeasured is not None or any(check.status == FAILED for check in checks):
        return [*checks, *(unmeasured or [])]
    return [*checks, purpose.judge(before, after)]


def why_not_measured(plan: ConversionPlan, text: VerificationText, purpose: LanguageLoss | Embeddings) -> list[Check] | None:
    """The checks (often none) of a result whose loss or embeddings are not measured; ``None`` if they are."""
    old, new, long_class = plan.old_length, plan.new_length, plan.architecture.long_class
    if purpose.lengths.covered == new:
        return []  # the result is the source at every length
    if isinstance(purpose, LanguageLoss):
        predicts = auto_class_name(plan.config, long_class) in HEADS and plan.skeleton.get_output_embeddings() is not None  # not ELECTRA's
        if not predicts or plan.decoder is not None:  # its decoder predicts its own output
            problem = f"the source reads no more than {old:,} tokens, and {long_class} has no loss without labels"
            would_tell = f"its scores on labelled texts of up to {new:,} tokens (longattn evaluate)"
            return [undecided(BEYOND, problem, would_tell)] if new > old else []
        if plan.architecture.converter is not None and new < 2 * old:
            return []  # outputs are compared anyway, and the length grows too little
        if text.tokenizer is not None and not plan.shape.causal and text.tokenizer.mask_token_id is None:
            would_tell = "a tokenizer with the token that the source was trained on"
            return [undecided(purpose.name, "the tokenizer has no mask token", would_tell)]
    if text.why_seeded:
        would_tell = "a source with its tokenizer" if text.tokenizer is None else READABLE_TEXT
        return [undecided(purpose.name, f"{text.why_seeded}, and real text is needed", would_tell)]
    real = text.real_tokens()
    if purpose.passages if isinstance(purpose, Embeddings) else purpose.lengths.read:
        return None
    needed = 2 * purpose.sizes[0] if isinstance(purpose, Embeddings) else purpose.lengths.needed
    if real < needed:
        return [undecided(purpose.name, f"{needed:,} tokens are needed, and the text has {real:,}", LONGER_TEXT)]
    problem = f"{needed:,} tokens would take too long for a model of this size"
    return [undecided(purpose.name, problem, f"its loss on long texts (longattn evaluate {'clm' if plan.shape.causal else 'mlm'})")]


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
    added_inputs = " and ".join(["global tokens"] * takes_globals + ["position_ids from the text"] * passes_positions)
    detail = f"a text of {short} tokens alone, and padded to {length} on the {' and on the '.join(sides)}"
    detail = f"{detail}{added_inputs and f', with {added_inputs}'}: largest difference"
    values = {"sides": sides, "length": length, "tokens": short}
    return equality(name, detail, difference if all_finite(padded) else Difference(output="padding"), values)
