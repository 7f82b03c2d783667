"""A native twin of a long checkpoint, written and compared. It is the checkpoint of a stock architecture that computes the same."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.english import verification_text
from ..errors import ExportError, checkpoint_errors, sentence_case
from ..files import is_generic, is_long
from ..hub import origin_of
from ..inputs.common.base import kind_of
from ..inputs.plain import reads_only_text
from ..inputs.text import VerificationText
from ..modeling.inference.pruning import whole_shapes, with_silent_heads
from ..reports import FAILED, Check, Difference, equality
from .architectures import Architecture, current_name, read_long
from .check import probe_outputs
from .flops import ModelShape, affordable_length, layer_mechanisms, model_shape
from .folders import open_for_writing, write_verified
from .long_models import CONVERTERS, Probe, Probing, TensorRename
from .model_loading import load_result, load_source, newly_initialised, quiet_libraries
from .plan_tensors import ResultPlan, TensorPlan
from .report import ConversionReport, StageProgress
from .sources import Source, refuse_quantised
from .tensor_names import names_in_model
from .twins import LongModel, NativeTwin, choose_twin
from .verify import check_written, length_from_files

NATIVE_REPORT = "native_report.json"
SHORT_LENGTH = 24
"""Length of the short input in tokens."""
GENERATED = 12
FLOPS = 5e11
"""Maximum FLOPs of one forward pass over the long input: some seconds on two cores."""


@dataclass(frozen=True)
class TwinPlan(ResultPlan):
    """Everything decided before a byte is written; ``architecture.source_class`` is the class of the twin."""

    model: LongModel
    twin: NativeTwin
    note: str

    @property
    def old_length(self) -> int:
        """Equal to ``new_length``, since the twin takes the long model's inputs."""
        return self.new_length

    @property
    def tokenizer_length(self) -> int:
        """0: the tokenizer keeps the long model's limit."""
        return 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {**super().to_dict(), "warnings": [f"{sentence_case(self.note)}."] if self.note else []}

    @property
    def shape(self) -> ModelShape:
        """The shape of the long model."""
        return model_shape(self.model.config, self.architecture.skeleton(self.model.config), [tensor.dtype for tensor in self.tensors])


def plan_twin(source: Source, *, masked: bool = False) -> TwinPlan:
    """Plan the native twin of a long checkpoint; `masked` as for :class:`LongModel`.

    Raises:
        ExportError: the checkpoint is short, or has no twin. The message names the layer and the reason.
    """
    if not is_long(source.config):
        raise ExportError(
            f"{source.name!r} is a short checkpoint, which is already a stock model; convert it first (longattn convert {source.name} DST)."
        )
    refuse_quantised(source)
    if is_generic(source.config):
        raise ExportError(f"{source.name!r} has the class of another architecture already, with mechanisms.")
    config, class_name, family, long_skeleton = read_long(source)
    model = LongModel(config, class_name, family, masked)
    choice = choose_twin(model)
    if (twin := choice.twin) is None:
        a_graph = reads_only_text(family.model_class(class_name)) and not config.is_encoder_decoder
        graph = " A graph runs without this package, too: type longattn export MODEL OUT." if a_graph else ""
        raise ExportError(f"{source.name!r} has no native twin: {choice.reason}{graph}")
    with checkpoint_errors(f"The config.json of {source.name!r} makes no valid {choice.class_name}"):
        twin_config = twin.config(model)
        skeleton: Any = twin.skeleton(model)
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    full_shapes = whole_shapes(long_skeleton)
    renamings = {
        name: tuple(_with_all_heads(renaming, full_shapes.get(name)) for renaming in twin.rename(current_name(name), model))
        for name in source.tensors
    }
    names = names_in_model({renaming.target for parts in renamings.values() for renaming in parts}, skeleton)
    tensors = []
    for name, parts in renamings.items():
        for renaming in parts:
            header, of_twin = source.tensors[name], names[renaming.target]
            if not of_twin.exists:
                tensors.append(TensorPlan.dropped(header, "the stock class has no such tensor"))
                continue
            shape = header.shape
            if renaming.change is not None:
                shape = tuple(renaming.change(torch.empty(shape, dtype=header.dtype, device="meta")).shape)
            if of_twin.key is not None and expected[of_twin.key] != shape:
                raise ExportError(
                    f"Tensor {name!r} of {source.name!r} would have the shape {shape}, but the native twin needs {expected[of_twin.key]}."
                )
            action = "changed" if renaming.change is not None else "renamed" if renaming.target != name else "kept"
            tensors.append(TensorPlan(renaming.target, action, header.dtype, header.shape, shape, header, change=renaming.change))
    supplied = {key for name in names.values() for key in name.keys}
    tied = {*(skeleton.all_tied_weights_keys or ()), *(long_skeleton.all_tied_weights_keys or ())}
    lacking = [name for name in expected.keys() - supplied - tied - dict(skeleton.named_buffers()).keys() if "pooler" not in name]
    if lacking:
        raise ExportError(
            f"The native twin {choice.class_name} needs the tensor {min(lacking)!r}, which a {class_name} does not have; export another "
            "head."
        )
    architecture = Architecture(family, twin_config, choice.class_name, class_name)
    return TwinPlan(
        source=source,
        architecture=architecture,
        config=twin_config,
        inputs=kind_of(family).sizes(config),
        positions="kept",
        tensors=tuple(tensors),
        max_shard_size=None,
        model=model,
        twin=twin,
        note=choice.note,
    )


def _with_all_heads(renaming: TensorRename, shape: tuple[int, ...] | None) -> TensorRename:
    """``renaming`` with zeros for pruned heads, since stock layers have equally many. ``shape``: with all heads; ``None`` if not pruned."""
    if shape is None:
        return renaming

    def change(values: Tensor) -> Tensor:
        all_heads = with_silent_heads(values, shape)
        return all_heads if renaming.change is None else renaming.change(all_heads)

    return dataclasses.replace(renaming, change=change)


def export_native(
    model: str | Path,
    destination: str | Path,
    *,
    global_attention_mask: bool = False,
    verify: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    progress: StageProgress | None = None,
    converted: ConversionReport | None = None,
) -> ConversionReport:
    """Write and check the native twin of a long checkpoint. It is a stock architecture of transformers that computes the same.

    Software that knows this architecture can serve the twin without this package. Outputs and generated tokens are compared for a short
    and a long input, with padding.

    Args:
        model: the folder of a long checkpoint, or a Hub repository id.
        destination: a folder that does not exist yet; it is complete or does not appear.
        global_attention_mask: every call of the twin will pass this mask, so the config's global tokens may differ from the tokens that the
            stock architecture makes global by default.
        verify: compare the written checkpoint with the model.
        overwrite: replace an existing folder, once the new one is complete.
        revision, token: of a Hub repository.
        progress: called as progress(stage, done, total).
        converted: the report of the conversion that wrote `model`; its checks come first in the returned report.

    Returns:
        The report, which is also in the destination's native_report.json.

    Raises:
        ExportError: there is no native twin; the sentence names the layer and the reason.
        LongAttentionError: one sentence; nothing was written.
    """
    with quiet_libraries():
        clock = {"start": time.perf_counter()}
        opened, _ = open_for_writing(model, destination, overwrite=overwrite, revision=revision, token=token)
        plan = plan_twin(opened, masked=global_attention_mask)
        clock["planned"] = time.perf_counter()
        made_from = str(model) if converted is None else converted.plan["source"]
        inputs = plan.kind.verification_inputs(plan, verification_text(None)) if verify else None
        twin_class = plan.architecture.source_class
        return write_verified(
            plan,
            destination,
            clock,
            inputs,
            partial(verify_twin, progress=progress),
            settings={"format": "native", **({"global_attention_mask": True} if plan.model.masked else {})},
            report_file=NATIVE_REPORT,
            overwrite=overwrite,
            checks=() if converted is None else converted.checks,
            next_step=lambda: None if converted is None else converted.next_step,
            introduction=f"A `{twin_class}` for {plan.kind.introduce(plan)}, which computes what the long model does, made by "
            f"`longattn export --format native` from {origin_of(made_from, opened.folder)}.",
            made_from=made_from,
            progress=progress,
        )


# The comparison of a twin with its long model.


def verify_twin(plan: TwinPlan, result: Path, text: VerificationText, progress: StageProgress | None = None) -> list[Check]:
    """Check the written folder `result`. Every tensor, the tokenizer, outputs and generated tokens."""
    return check_written(
        plan, result, text, lambda opened, scratch: [partial(_compare_outputs, plan, opened, text, scratch)], progress=progress
    )


def _compare_outputs(plan: TwinPlan, opened: Source, text: VerificationText, scratch: Path | None) -> list[Check]:
    """Compare outputs and generated tokens at a short and a long length. The two models are never in memory together."""
    config, shape, longest = plan.model.config, plan.shape, plan.new_length
    long = affordable_length(longest, shape, layer_mechanisms(config.long_attention, shape, longest), FLOPS)
    if scratch is not None:
        long = min(long, length_from_files(plan))
    lengths = tuple(dict.fromkeys((min(SHORT_LENGTH, long), long)))
    probing = next((converter for converter in CONVERTERS if converter.model_type == plan.config.model_type), Probing())
    globals_fit = plan.twin.takes_globals and all(layer.traits.takes_globals for layer in plan.model.layers)
    probes = []
    for length in lengths:
        for probe in probing.probes(plan.config, plan.architecture.source_class, text, length):
            has_globals = "global_attention_mask" in probe.inputs
            if has_globals <= globals_fit and has_globals >= plan.model.masked:
                probes.append((length, probe))

    def run(model: Any, headless: bool) -> tuple[list[dict[str, Tensor]], list[tuple[Tensor, list[Tensor]]]]:
        model = model.base_model if headless else model
        outputs, tokens = [], []
        for _, probe in probes:
            for module in model.modules():  # transformers' BigBird keeps computing full attention after a short input
                if hasattr(module, "set_attention_type") and getattr(module, "config", None) is not None:
                    module.set_attention_type(module.config.attention_type)
            outputs.append(probe_outputs(model, probe.inputs))
            if getattr(model, "can_generate", lambda: False)():
                tokens.append(generated(model, probe))
        return outputs, tokens

    model, missing = load_result(plan.source.folder, plan.architecture, config, scratch=scratch)
    headless = newly_initialised(missing, model)
    expected, long_tokens = run(model, headless)
    del model
    of_twin, twin_tokens = run(load_source(opened, plan.architecture, None, scratch)[0], headless)
    checks = [_compared(length, probe, *both) for (length, probe), *both in zip(probes, expected, of_twin, strict=True)]
    return [*checks, *(_compared_tokens(length, *both) for (length, _), *both in zip(probes, long_tokens, twin_tokens, strict=False))]


def _compared(length: int, probe: Probe, expected: dict[str, Tensor], measured: dict[str, Tensor]) -> Check:
    name = f"equal to the long model at {length} tokens, {probe.name}"
    common = sorted(expected.keys() & measured.keys())
    if not common:
        return Check(name, FAILED, "the two models have no output in common")
    rows = ({output: probe.rows(output, outputs[output]) for output in common} for outputs in (expected, measured))
    difference = Difference.of(*rows)
    named = [output for output in common if "hidden_states[" not in output]
    detail = f"{', '.join([*named, 'all hidden states'])}: largest difference"
    return equality(name, detail, difference, {"length": length})


def generated(model: Any, probe: Probe) -> tuple[Tensor, list[Tensor]]:
    """Greedily generated tokens after each text, which is padded on the left, and the logits of every step."""
    ids, mask = probe.inputs["input_ids"], probe.inputs["attention_mask"]
    keep = max(1, ids.shape[1] - GENERATED)
    ids, mask = ids[:, :keep], mask[:, :keep]
    ids = torch.stack([torch.roll(row, keep - int(real.sum())) for row, real in zip(ids, mask, strict=True)])
    with torch.no_grad():
        returned = model.generate(
            ids, attention_mask=mask.flip(-1), max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False, num_beams=1,
            output_logits=True, return_dict_in_generate=True, pad_token_id=model.config.pad_token_id or 0,
        )  # fmt: skip
    return returned.sequences[:, -GENERATED:], [step.float() for step in returned.logits]


def _compared_tokens(length: int, of_long: tuple[Tensor, list[Tensor]], of_twin: tuple[Tensor, list[Tensor]]) -> Check:
    """Compare generated tokens and logits, up to the first step at which tokens differ."""
    name = f"generates the same after {length} tokens"
    same = torch.ones(len(of_long[0]), dtype=torch.bool)
    steps = []
    for step, (a, b) in enumerate(zip(of_long[1], of_twin[1], strict=True)):
        steps.append(Difference.of({"logits": a[same]}, {"logits": b[same]}))
        same = same & (of_long[0][:, step] == of_twin[0][:, step])
        if not same.all():
            break
    how = f"{of_long[0].shape[1]} tokens after each of {len(same)} texts, {'the same' if bool(same.all()) else 'others'}"
    check = equality(name, f"{how}, largest difference of the logits", Difference.worst(steps), {"length": length})
    return check if bool(same.all()) else Check(name, FAILED, f"{how}, but they must be equal", check.values)
