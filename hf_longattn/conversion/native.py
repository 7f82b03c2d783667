"""A stock checkpoint, written and compared with the long model; :mod:`.stock` says which architecture and how."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..data.english import verification_text
from ..errors import CheckpointError, ExportError, checkpoint_errors, listed
from ..files import check_destination, destination_path, is_generic, is_long, staged_folder
from ..hub import origin_of
from ..inputs.common.running import floating_tensors
from ..inputs.plain import reads_only_text
from ..inputs.text import VerificationText, excerpt, load_tokenizer
from ..loading import check_complete, load_weights, tied_weights
from ..mechanisms.longformer import Longformer
from ..reports import FAILED, PASSED, Check, Difference, equality
from .adopt import Adoption, Probe, adoption_of
from .architectures import read_long
from .flops import affordable_length, layer_mechanisms, model_shape
from .folders import add_source_files, with_report, write_report
from .model_loading import quiet_libraries, without_random_pooler
from .report import ConversionReport, StageProgress, versions
from .sources import Source, open_source, refuse_quantised
from .stock import LongModel, StockChoice, choose_stock

NATIVE_REPORT = "native_report.json"
SHORT_LENGTH = 24
"""Length of the short input in tokens."""
GENERATED = 12
"""Generated tokens that are compared."""
FLOPS = 5e11
"""Maximum FLOPs of one forward pass over the long input: some seconds on two cores."""


@quiet_libraries()
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
    """Write and check a stock checkpoint: an architecture of transformers that computes what a long checkpoint does.

    Software that knows this architecture can serve it without this package. Outputs and generated tokens are compared for a short and a
    long input, with padding.

    Args:
        model: the folder of a long checkpoint, or a Hub repository id.
        destination: a folder that does not exist yet; it is complete or does not appear.
        global_attention_mask: every call of the stock model will pass this mask, so the config's global tokens may differ from the tokens
            that the stock architecture makes global by default.
        verify: compare the written checkpoint with the model.
        overwrite: replace an existing folder, once the new one is complete.
        revision, token: of a Hub repository.
        progress: called as progress(stage, done, total).
        converted: the report of the conversion that wrote `model`; its checks come first in the returned report.

    Returns:
        The report, which is also in the destination's native_report.json.

    Raises:
        ExportError: no stock architecture computes the same; the sentence names the layer and the reason.
        LongAttentionError: one sentence; nothing was written.
    """
    times, target = [time.perf_counter()], destination_path(destination)
    source = open_source(model, revision=revision, token=token)
    check_destination(target, *source.protected, overwrite=overwrite)
    long_model, choice = _choose(source, global_attention_mask)
    times.append(time.perf_counter())
    size = sum(path.stat().st_size for path in source.folder.glob("*.safetensors"))
    with staged_folder(target, needed_bytes=size + 2**20, overwrite=overwrite) as stage:
        long, stock = _load(source, long_model, choice)
        if progress is not None:
            progress("write", 0, size)
        stock.save_pretrained(stage)
        files, length = sorted(path.name for path in stage.iterdir()), long_model.family.longest(long_model.config)
        files += add_source_files(source, stage, length)
        times.append(time.perf_counter())
        checks, text = [*(() if converted is None else converted.checks)], None
        if verify:
            english, origin = verification_text(None)
            text = VerificationText(excerpt(english, length), origin, load_tokenizer(stage), long.config.vocab_size)
            with checkpoint_errors("Verification failed, so nothing was kept: the long model or the stock model does not run"):
                checks += _compare(long.float(), long_model, stage, choice.class_name, text, progress)
        times.append(time.perf_counter())
        if failed := [check.detail for check in checks if check.status == FAILED]:
            raise CheckpointError(f"Verification failed, so nothing was kept: {'; '.join(failed)}.")
        report = ConversionReport(
            destination=target,
            config={"format": "native", **({"global_attention_mask": True} if global_attention_mask else {})},
            plan={
                "source": source.name,
                "long_class": long_model.class_name,
                "class": choice.class_name,
                "model_type": stock.config.model_type,
                "old_length": length,
                "new_length": length,
                "positions": "kept",
                "parameters": stock.num_parameters(),
                "warnings": [f"{choice.stock.note}."] if choice.stock.note else [],
            },
            checks=tuple(checks),
            text="not verified" if text is None else text.describe(),
            files=with_report(files, NATIVE_REPORT),
            bytes_written=sum(path.stat().st_size for path in stage.glob("*.safetensors")),
            seconds={name: round(times[number + 1] - times[number], 3) for number, name in enumerate(("plan", "convert", "verify"))},
            versions=versions(),
            next_step=None if converted is None else converted.next_step,
        )
        made_from = str(model) if converted is None else converted.plan["source"]
        reads = f"inputs of up to {length:,} tokens" if length else "inputs of any length"
        introduction = (
            f"A `{choice.class_name}` for {reads}, which computes what the long model does, made by `longattn export --format native` "
            f"from {origin_of(made_from, source.folder)}."
        )
        write_report(stage, source, str(destination), report, NATIVE_REPORT, introduction=introduction, made_from=made_from)
        return report


def _choose(source: Source, masked: bool) -> tuple[LongModel, StockChoice]:
    """The long model in a folder, and its stock architecture.

    Raises:
        ExportError: the checkpoint is short, or no stock architecture computes the same.
    """
    if not is_long(source.config):
        raise ExportError(
            f"{source.name!r} is a short checkpoint, which is already a stock model; convert it first (longattn convert {source.name} DST)."
        )
    refuse_quantised(source)
    if is_generic(source.config):
        raise ExportError(f"{source.name!r} has the class of another architecture already, with mechanisms.")
    config, class_name, family, _ = read_long(source)
    model = LongModel(config, class_name, family, masked)
    choice = choose_stock(model)
    if choice.stock is None:
        a_graph = reads_only_text(family.model_class(class_name)) and not config.is_encoder_decoder
        graph = " A graph runs without this package, too: type longattn export MODEL OUT." if a_graph else ""
        raise ExportError(f"{source.name!r} has no stock form: {choice.reason}{graph}")
    return model, choice


def _load(source: Source, model: LongModel, choice: StockChoice) -> tuple[Any, Any]:
    """The long model, and the stock model with its tensors, both in the dtype of the files.

    Raises:
        CheckpointError: the files lack weights, or the config is not valid.
        ExportError: the stock class has other tensors.
    """
    assert choice.stock is not None
    long, info = load_weights(
        model.family.model_class(model.class_name), source.folder, dtype="auto", local_files_only=True, output_loading_info=True
    )
    check_complete(long, {**info, "missing_keys": _without_poolers(long, info)}, source.name)
    with checkpoint_errors(f"The config.json of {source.name!r} makes no valid {choice.class_name}"):
        stock, info = load_weights(
            getattr(transformers, choice.class_name), None, config=choice.stock.config(model),
            state_dict=choice.stock.state_dict(long, model), dtype=long.dtype, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    missing = _without_poolers(stock, info) - {*tied_weights(stock)}
    if other := [*missing, *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])]:
        raise ExportError(f"A {choice.class_name} has other tensors than a {model.class_name} ({listed(other)}); export another head.")
    return long.eval(), stock


def _without_poolers(model: Any, info: Mapping[str, Any]) -> set[str]:
    """Remove poolers that were not in the files, which would be random. Returns the other missing names."""
    return {name for name in without_random_pooler(model, {*info["missing_keys"]}) if "pooler" not in name}


def _compare(
    long: Any, model: LongModel, stage: Path, class_name: str, text: VerificationText, progress: StageProgress | None
) -> list[Check]:
    """Compare outputs and generated tokens of the written stock model with the long model's, at a short and a long length."""
    stock, info = load_weights(getattr(transformers, class_name), stage, dtype=torch.float32, output_loading_info=True)
    _without_poolers(stock, info)
    longest, shape = model.family.longest(model.config), model_shape(model.config, long, [torch.float32])
    most = affordable_length(longest, shape, layer_mechanisms(model.config.long_attention, shape, longest), FLOPS)
    adoption, checks = adoption_of(stock.config.to_dict()) or Adoption(), list[Check]()
    takes_mask = all(isinstance(mechanism, Longformer) for mechanism in model.layers)
    probes = [
        (length, probe)
        for length in dict.fromkeys((min(SHORT_LENGTH, most), most))
        for probe in adoption.probes(stock.config, class_name, text, length)
        if (takes_mask if "global_attention_mask" in probe.inputs else not model.masked)
    ]
    for done, (length, probe) in enumerate(probes):
        if progress is not None:
            progress("verify", done, len(probes))
        for module in stock.modules():  # transformers' BigBird keeps computing full attention after a short input
            if hasattr(module, "set_attention_type") and hasattr(module, "config"):
                module.set_attention_type(module.config.attention_type)
        with torch.no_grad():
            outputs = [floating_tensors(each(**probe.inputs, output_hidden_states=True, return_dict=True)) for each in (long, stock)]
        common = sorted(outputs[0].keys() & outputs[1].keys())
        difference = Difference.of(*({name: probe.rows(name, values[name]) for name in common} for values in outputs))
        detail = f"{', '.join([*(name for name in common if '[' not in name), 'all hidden states'])}: largest difference"
        checks.append(equality(f"equal to the long model at {length} tokens, {probe.name}", detail, difference, {"length": length}))
        if stock.can_generate():
            same = torch.equal(*(_generate(each, probe) for each in (long, stock)))
            what = f"{GENERATED} tokens after each of two texts, {'the same' if same else 'others, but they must be equal'}"
            checks.append(Check(f"generates the same after {length} tokens", PASSED if same else FAILED, what, {"length": length}))
    return checks


def _generate(model: Any, probe: Probe) -> Tensor:
    """Greedily generated tokens after the beginnings of a probe's two texts, which are padded on the left."""
    mask = probe.inputs["attention_mask"]
    mask = mask[:, : max(1, mask.shape[1] - GENERATED)]
    ids = [row[: len(real)].roll(len(real) - int(real.sum())) for row, real in zip(probe.inputs["input_ids"], mask, strict=True)]
    options = {"max_new_tokens": GENERATED, "min_new_tokens": GENERATED, "do_sample": False, "num_beams": 1}
    tokens = model.generate(torch.stack(ids), attention_mask=mask.flip(-1), pad_token_id=model.config.pad_token_id or 0, **options)
    return tokens[:, -GENERATED:]
