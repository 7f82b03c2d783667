"""Compare the result of a conversion with its source: both models, and their tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import listed
from ..loading import stored_tensors, tied_weights, unread_tensors
from ..mechanisms.common.capabilities import projection_copies
from ..mechanisms.common.shared_options import without_exact_length
from ..modeling.attach.attention_sites import MECHANISM_ATTRIBUTE, copied_parameters
from ..modeling.backend import BACKEND
from ..modeling.family.definition import without_head
from ..modeling.family.long_config import attention_implementation
from ..positions.tables import DROPPED, extend_table, unchanged_rows
from ..reports import FAILED, PASSED, Check
from .adopt import renamed
from .load import added_modules, attached_mechanisms, load_checked, load_source, result_class, source_class
from .plan import ConversionPlan
from .running import all_finite

AS_CONFIGURED = "as for texts of up to {}"
MECHANISMS = "long attention"
BASE = "full attention instead of the mechanism"
"""Names of the result's attention in a comparison, see :func:`attending`.

:data:`AS_CONFIGURED` is the attention that users get. It has a placeholder for the maximum length of short texts,
which the result may read with full attention. :data:`MECHANISMS` runs the mechanisms on short texts, too. :data:`BASE`
is the source's attention.
"""
ROUNDED = 1e-2
"""Maximum relative difference between a computed row of a position table and the stored row, which is rounded. The
rounding of bf16 is up to 4e-3."""


FREE_SHARE = 0.75
"""Maximum share of the free memory for source and result in fp32. The rest is for activations and logits."""


@dataclass
class Comparison:
    """Source and result of a conversion, both loaded in one dtype, and the inputs for comparing them.

    Attributes:
        headless: whether the source's files lack weights of its head, so that only hidden states can be compared.
        compared: the parts of source and result whose outputs are compared.
        outputs: these outputs, as a noun phrase.
    """

    plan: ConversionPlan  # for the whole model, or for one tower
    source: Any  # a model of the source's class
    result: Any  # loaded from `folder`
    folder: Path  # the result's folder, with its tokenizer or processor
    inputs: Any  # what Modality.inputs returned for the plan's modality
    missing: frozenset[str] = frozenset()  # names of parameters that the source's files lack
    lacking: frozenset[str] = frozenset()  # names of parameters that the written files lack
    stored: int = 0  # number of tensors in the source's files
    left_out: Mapping[str, str] = field(default_factory=dict)  # tensors that the source's class does not read -> why

    def __post_init__(self) -> None:
        self.headless = bool(self.missing - {*tied_weights(self.source)})
        self.compared = (self.source, self.result)
        self.outputs = "outputs"
        if self.headless:
            self.compared = (without_head(self.source), without_head(self.result))
            self.outputs = "hidden states (the source has no weights for its head)"
        if self.source.dtype.itemsize < 4:
            self.outputs += (
                f" in {str(self.source.dtype).removeprefix('torch.')} (memory has no room for both models in fp32)"
            )

    def tower(self, name: str) -> Comparison:
        """The comparison of one tower, such as "vision", in source and result."""
        prefix = f"{name}_model."
        source, result = (model.get_submodule(prefix.rstrip(".")) for model in (self.source, self.result))
        missing = frozenset(key.removeprefix(prefix) for key in self.missing if key.startswith(prefix))
        return Comparison(self.plan.towers[name], source, result, self.folder, self.inputs[name], missing)


def load_both(plan: ConversionPlan, folder: Path, inputs: Any) -> Comparison:
    """Load the source with transformers' class and the written result with the Auto class of its head.

    Both are loaded in fp32 if free memory has room for them. Otherwise they keep the dtype of the files, because
    safetensors can map files into memory. Values of .bin files are first rounded to the dtype in config.json, because
    the conversion rounded them, too.
    """
    import psutil

    source, architecture = plan.source, plan.architecture
    # two models with 4 bytes per parameter
    fits = 8 * plan.parameters < FREE_SHARE * psutil.virtual_memory().available
    dtype: Any = torch.float32 if fits else "auto"
    original, missing = load_source(source, architecture, "auto" if source.pickled else dtype)
    if fits:
        original = original.float()
    result, lacking = load_checked(
        result_class(architecture, plan.config), folder, str(folder), headless=True, dtype=dtype
    )
    stored = stored_tensors(source.folder, source.name)
    left_out = unread_tensors(source_class(architecture), source.folder, stored, allow_pickle=source.pickled)
    return Comparison(
        plan, original, result, folder, inputs, frozenset(missing), frozenset(lacking), len(stored), left_out
    )


def check_tensors(comparison: Comparison) -> list[Check]:
    """Check that the result has every tensor of the source, byte for byte. Only mechanisms and memory tokens may have
    new tensors.

    An extended position table must keep its first rows. If the strategy drops positions, all its rows must be equal.
    """
    plan, result = comparison.plan, comparison.result
    after = result.state_dict()
    tied = {*tied_weights(result)}

    # the source's tensors under the result's names
    missing = {*comparison.missing}
    adoption = plan.architecture.converter
    if adoption is None:
        before = comparison.source.state_dict()
    else:
        before = adoption.state_dict(comparison.source)
        missing = {renamed(name, adoption.names) for name in missing}
    # without random parameters, and without parameters of a mechanism that the result no longer has
    expected = {
        name: value
        for name, value in before.items()
        if name not in missing and (name in after or f".{MECHANISM_ATTRIBUTE}." not in name)
    }

    new = after.keys() - before.keys() - missing - tied
    lost = (expected.keys() - after.keys()) | (comparison.lacking - missing - tied)
    wrong = [f"{name} is missing" for name in sorted(lost)]
    wrong += [f"{name} was not planned" for name in sorted(new) if not name.startswith(added_modules(result))]
    for name in expected.keys() & after.keys():
        wrong += [f"{name} {problem}" for problem in _differences(plan, name, expected[name], after[name])]
    wrong += wrong_copies(result, new)
    infinite = sorted(name for name, value in after.items() if not all_finite({name: value}))

    # what became of the tensors, for the report
    extended = sum(after[name].shape != value.shape for name, value in expected.items() if name in after)
    left_out = {
        **comparison.left_out,
        **dict.fromkeys(before.keys() - expected.keys() - missing, "the result's attention has none"),
    }
    counts = {
        "kept": comparison.stored - extended - len(left_out),
        "extended": extended,
        "left out": len(left_out),
        "new": len(new),
    }
    status, detail = PASSED, in_words(comparison.stored, counts, left_out)
    if wrong:
        status, detail = FAILED, f"{len(wrong)} tensors are wrong, the first: {wrong[0]}"
    elif infinite:
        advice = "so no output can be compared (--no-verify converts them)"
        detail = f"{len(infinite)} tensors hold NaN or infinite numbers, {advice}, the first: {infinite[0]}"
        status = FAILED
    values = {**counts, "left_out": left_out, "wrong": wrong[:20], "not_finite": infinite[:20]}
    return [Check("tensors", status, detail, values)]


def wrong_copies(result: Any, new: Set[str]) -> list[str]:
    """Check the ``new`` parameters that start as copies of their layer's parameters. Returns a clause per wrong
    copy."""
    wrong = []
    for prefix, mechanism in attached_mechanisms(result).items():
        layer = result.get_submodule(prefix.partition(f".{MECHANISM_ATTRIBUTE}")[0])
        for name, copied in copied_parameters(layer, projection_copies(mechanism)).items():
            parameter = mechanism.get_parameter(name)
            expected = copied(layer.get_parameter(copied.name)).view_as(parameter)
            if f"{prefix}.{name}" in new and not _same_bytes(expected, parameter):
                wrong.append(f"{prefix}.{name} is no copy of its layer's values")
    return wrong


def in_words(stored: int, counts: Mapping[str, int], left_out: Mapping[str, str]) -> str:
    """A sentence about the source's tensors.

    Args:
        stored: number of tensors in the source's files.
        counts: what became of them, such as "kept" or "extended" -> number of tensors.
        left_out: name of each tensor that the result does not have -> the reason.
    """
    accounts = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    sentence = f"{stored} tensors of the source accounted for: {accounts}"
    for reason in sorted({*left_out.values()}):
        modules = listed(name.rpartition(".")[0] or name for name in left_out if left_out[name] == reason)
        sentence += f"; left out, {reason}: {modules}"
    return sentence


def _differences(plan: ConversionPlan, name: str, old: Tensor, new: Tensor) -> Iterator[str]:
    """Compare the written tensor ``new`` with the source's tensor ``old``. Each problem is a clause.

    A position table may be extended. Other tensors must be equal, byte for byte.
    """
    towers = {} if plan.generic else plan.towers
    for tower, part in towers.items():
        prefix = f"{tower}_model."
        if name.startswith(prefix):
            yield from _differences(part, name.removeprefix(prefix), old, new)
            return
    table, strategy = plan.architecture.family.table(name), plan.positions
    if table is None or (new.shape == old.shape and strategy not in DROPPED):
        if not _same_bytes(old, new):
            yield "differs from the source's values"
        return
    offset = table.offset_rows(plan.config)
    rows = offset + unchanged_rows(strategy, len(old) - offset)
    if not _same_bytes(new[:rows], old[:rows]):
        yield f"lost its first {rows} rows"
    if strategy in DROPPED and not bool((new[offset:] == new[-1]).all()):
        yield "must have equal rows"
    expected = extend_table(old, len(new), offset=offset, strategy=strategy)
    if not _same_bytes(new, expected) and (
        strategy == "tile" or not torch.allclose(new, expected, ROUNDED, ROUNDED * float(old.std()))
    ):
        yield "differs from the source's values"


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bytes, so that NaN equals NaN and 0.0 differs from -0.0."""
    a, b = (values.detach().contiguous().reshape(-1).view(torch.uint8) for values in (a, b))
    return torch.equal(a, b)


@contextlib.contextmanager
def attending(model: Any, attention: str) -> Iterator[None]:
    """Within the context, a result runs with another attention.

    attention: :data:`AS_CONFIGURED`, or :data:`BASE` for the base's attention. With any other name the result runs its
        mechanisms, also on texts that its ``exact_length`` lets attend in full.
    """
    implementation = attention_implementation(model.config) or BACKEND
    if attention == BASE:
        model.use_base_attention()
    with without_exact_length(() if attention == AS_CONFIGURED else attached_mechanisms(model).values()):
        yield
    if attention == BASE:
        model.set_attn_implementation(implementation)


def check_finite(name: str, what: str, outputs: Mapping[str, Tensor], values: dict[str, Any] | None = None) -> Check:
    if all_finite(outputs):
        return Check(name, PASSED, f"{what} are finite", values or {})
    return Check(name, FAILED, f"{what} are not finite", values or {})
