"""plan → transform → write → verify, in a folder that appears whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration import LongAttentionConfig
from ..errors import OptionError
from ..hub import bundle_remote_code, check_remote_code, write_model_card
from .flops import layer_mechanisms
from .init_from_text import initial_values
from .model_loading import quiet_libraries
from .plan import ConversionPlan, all_options, plan_conversion
from .report import NEEDS_TRAINING, REPORT, Check, ConversionReport, StageProgress, require_passed, seconds, versions
from .sources import ResultInfo, open_source
from .staging import destination_path, staged_folder
from .tensor_files import write_json, write_weights
from .text import VerificationText, beginning, load_tokenizer, verification_text
from .verify import verify as verify_result
from .writing import added_values, files_of, write_sidecars


@quiet_libraries()
def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    mechanism: str | None = None,
    long_attention: LongAttentionConfig | dict[str, Any] | None = None,
    max_length: int | None = None,
    decoder_long_attention: LongAttentionConfig | dict[str, Any] | None = None,
    max_decoder_length: int | None = None,
    positions: str = "auto",
    dtype: str | torch.dtype | None = None,
    max_shard_size: str | int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    verify_text: str | Path | None = None,
    init_from_text: str | Path | None = None,
    allow_pickle: bool = False,
    merge_adapter: bool = False,
    remote_code: bool = False,
    user_code: bool = False,
    generic: bool = False,
    progress: StageProgress | None = None,
    options: Mapping[str, Any] | None = None,
    **more_options: Any,
) -> ConversionReport:
    """Turn a short checkpoint into a long one, and check the files that were written.

    Args:
        source: a folder (transformers, sentence-transformers or a PEFT adapter), a .gguf file, or a Hub repository id.
        destination: a folder that does not exist yet; it appears complete or not at all.
        mechanism: its name; its options are further arguments, for example mechanism="longformer", window=512, or stand in `options`;
            `layers` among them overrides single layers as in `LongAttentionConfig`.
        options: the same in one mapping, for options that came from a user: none of them can be taken for another argument.
        long_attention: or a whole configuration instead.
        max_length: tokens the result takes; None keeps the source's.
        decoder_long_attention, max_decoder_length: the same for the decoder beside an encoder; None keeps full attention, and the
            source's length except under heads that read the whole text in the decoder.
        positions: "auto" (tile a learned table; leave rotary positions alone where no layer looks beyond the old length, else
            YaRN), "tile", "interpolate", "random", "none" (no absolute positions), "alibi" (ALiBi in their
            place), or "rope:<kind>", see `hf_longattn.positions`.
        dtype: store floating tensors in it, for example "bf16"; None keeps each tensor's own.
        max_shard_size: bytes or "5GB"; None keeps the files of the source.
        verify: run the checks; a failed one leaves no destination.
        overwrite: replace an existing checkpoint folder, once the new one is complete.
        revision, token: of a Hub repository.
        verify_text: a UTF-8 text file to verify with; None takes built-in English.
        init_from_text: a UTF-8 text file on which the source runs, so that the mechanisms' own parameters begin from its keys and values
            where they can (linformer), instead of at random.
        allow_pickle: read torch's .bin files where the source has no safetensors file; only tensors are read (`weights_only=True`).
        merge_adapter: of a PEFT adapter, add it to its base's weights instead of keeping it in the folder "adapter".
        remote_code, user_code: put the model's code beside it, see `hf_longattn.hub.bundle_remote_code`.
        generic: convert an architecture that has no family but is on transformers' AttentionInterface: its class, config and positions
            stay as they are, with the mechanisms beside them; `hf_longattn.load_generic` loads the result.
        progress: called as progress(stage, done, total).

    Returns:
        The report, which is also in the destination's conversion_report.json.

    Raises:
        LongAttentionError: with one sentence; nothing was written then.
    """
    target = destination_path(destination)
    clock = {"start": time.perf_counter()}
    text, origin = verification_text(verify_text)
    chosen = all_options(options, more_options)
    wanted: dict[str, Any] = {
        "mechanism": mechanism,
        "long_attention": long_attention,
        "max_length": max_length,
        "decoder_long_attention": decoder_long_attention,
        "max_decoder_length": max_decoder_length,
        "positions": positions,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "init_from_text": init_from_text,
        "allow_pickle": allow_pickle,
        "merge_adapter": merge_adapter,
        "generic": generic,
        "options": chosen,
    }
    if generic and remote_code:
        raise OptionError("--remote-code bundles the code of Long classes, and --generic makes none; leave one of them out.")
    on_the_hub = not Path(source).expanduser().exists()
    if on_the_hub:  # refuse before downloading the weights
        plan_conversion(source, target, overwrite=overwrite, revision=revision, token=token, **wanted)
    opened = open_source(source, revision=revision, token=token, allow_pickle=allow_pickle, merge_adapter=merge_adapter)
    plan = plan_conversion(opened, target, overwrite=overwrite, **wanted)
    if remote_code:
        check_remote_code(plan.config, user_code=user_code)
    clock["planned"] = time.perf_counter()
    text = beginning(text, plan.new_length)
    vocabulary = getattr(plan.config.get_text_config(), "vocab_size", 2)  # a model of images has none
    tokens = VerificationText(text, origin, load_tokenizer(opened.folder), vocabulary) if verify else None
    begun, begun_checks = initial_values(plan, init_from_text) if init_from_text is not None else (None, [])
    with staged_folder(target, needed_bytes=plan.total_bytes + 2**20, overwrite=overwrite) as stage:
        files = _write(plan, stage, target, begun, progress)
        clock["written"] = time.perf_counter()
        checks = verify_result(plan, stage, tokens, given_text=verify_text is not None, progress=progress) if tokens else []
        require_passed(checks)
        clock["verified"] = time.perf_counter()
        report = _report(plan, target, (*begun_checks, *checks), tokens, files, clock)
        write_json(stage / REPORT, report.to_dict())
        if remote_code:
            bundle_remote_code(stage, user_code=user_code)
        write_model_card(stage, base_model=str(source) if on_the_hub else None, source=opened.card_folder, name=str(destination))
    return report


def _write(plan: ConversionPlan, stage: Path, target: Path, begun: dict[str, Tensor] | None, progress: StageProgress | None) -> list[str]:
    advance = None if progress is None else (lambda done, total: progress("write", done, total))
    files = write_weights(stage, files_of(plan, added_values(plan) if begun is None else begun), advance)
    base_type = plan.source.config["model_type"]
    files += write_sidecars(
        plan.source.folder,
        stage,
        plan.config,
        base_type=base_type,
        old_length=plan.old_length,
        new_length=plan.new_length,
        generated=plan.decoder,
    )
    result = ResultInfo(target, plan.architecture.long_class, plan.architecture.family.module, plan.new_length)
    files += plan.source.write_beside(stage, result)
    return list(dict.fromkeys(files))


def _report(
    plan: ConversionPlan,
    target: Path,
    checks: tuple[Check, ...],
    text: VerificationText | None,
    files: list[str],
    clock: dict[str, float],
) -> ConversionReport:
    needs_training = any(check.status == NEEDS_TRAINING for check in checks)
    return ConversionReport(
        destination=target,
        plan=plan.to_dict(),
        checks=checks,
        text="not verified" if text is None else "seeded inputs" if plan.generic else text.describe(),
        files=(*files, REPORT, "README.md"),
        bytes_written=plan.total_bytes,
        seconds=seconds(clock),
        versions=versions(),
        next_step=next_step(plan) if needs_training else None,
    )


LANGUAGE_MODELS = ("ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel", "DoubleHeadsModel")


def next_step(plan: ConversionPlan) -> dict[str, Any]:
    """How the result is trained, as a report keeps it: {"command": words} or {"advice": text}, with "{model}" for the model's name.

    A language model is trained on long text, by attention distillation if its mechanisms have parameters to learn; a classifier on labelled
    documents; a question-answering model, or an encoder without a head, on questions.
    """
    length = f"texts of up to {plan.new_length} tokens"
    if plan.generic:
        return {"advice": "fine-tune hf_longattn.load_generic('{model}') with transformers' Trainer"}
    head = plan.architecture.source_class
    if hint := plan.source.training_hint(plan.new_length):
        return {"advice": hint}
    skeleton: Any = plan.architecture.skeleton(plan.config)
    if head.endswith(LANGUAGE_MODELS) and skeleton.get_output_embeddings() is not None:
        learns = any(mechanism.trains for mechanism in layer_mechanisms(plan.attention, plan.shape, plan.new_length))
        script = "distill_attention" if learns else "train_lm"
        return _command(script, "--text", "YOUR_TEXTS", "--max-length", str(plan.new_length), output="trained")
    if head.endswith("ForConditionalGeneration"):
        return {"advice": f"fine-tune {{model}} with transformers' Seq2SeqTrainer on {length}"}
    if head.endswith("ForSequenceClassification"):
        return _command("train_classification", "--data", "YOUR_TEXTS", output="trained")
    if not plan.shape.causal and (head.endswith("ForQuestionAnswering") or "For" not in head):
        return _command("train_qa", "--data", "YOUR_QUESTIONS.json", "--epochs", "2", "--max-length", str(plan.new_length), output="qa")
    return {"advice": f"fine-tune {{model}} with transformers' Trainer on {length}"}


def _command(script: str, *arguments: str, output: str) -> dict[str, Any]:
    return {"command": ["python", f"scripts/{script}.py", "--model", "{model}", *arguments, "--output", f"{{model}}-{output}"]}
