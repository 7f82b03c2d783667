"""Convert a checkpoint: plan → write → verify. The folder is complete or does not appear."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from transformers.modeling_utils import load_state_dict
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..data.english import verification_text
from ..errors import ExportError, checkpoint_errors
from ..files import (
    CONVERSION_REPORT,
    EMBEDDINGS,
    MODULES,
    check_destination,
    check_files,
    destination_path,
    ending_cleanly,
    sentence_kind,
    sentence_modules,
)
from ..hub import write_remote_code
from ..inputs.common.base import train_command
from ..loading import PICKLED_WEIGHTS
from ..modeling.family.definition import LANGUAGE_MODELS
from ..positions.tables import DROPPED
from .config import AUTO, ConversionConfig
from .flops import layer_mechanisms
from .folders import write_verified
from .model_loading import quiet_libraries
from .plan import Chooser, ConversionPlan, plan_conversion
from .report import ConversionReport, StageProgress
from .sources import fetch_model, fetch_snapshot, has_safetensors, open_source
from .stock import export_native
from .verify import verify as verify_result
from .writing import added_values


@quiet_libraries()
def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: ConversionConfig | None = None,
    *,
    choose: Chooser | None = None,
    progress: StageProgress | None = None,
    **settings: Any,
) -> ConversionReport:
    """Turn a short checkpoint into a long one, and check the files that were written.

        convert_checkpoint("google-bert/bert-base-uncased", "bert-4096", mechanism="longformer", window=512, max_length=4096)

    Args:
        source: a folder (transformers or sentence-transformers), or a Hub repository id.
        destination: a folder that does not exist yet. It appears complete, or not at all.
        config: the settings; or its fields as keywords, see :class:`~hf_longattn.ConversionConfig`. Other keywords are options of the
            mechanism; pass options whose names come from a user as the mapping `options`.
        choose: the function that chooses mechanisms for ``mechanism="auto"``: :func:`hf_longattn.search.choose_mechanisms`.
        progress: called as progress(stage, done, total).

    Returns:
        The report, which is also in the destination's conversion_report.json.

    Raises:
        LongAttentionError: one sentence; nothing was written.
    """
    chosen = ConversionConfig.from_keywords(config, settings)
    target = destination_path(destination)
    clock = {"start": time.perf_counter()}
    text = verification_text(chosen.verify_text)
    with ending_cleanly(), contextlib.ExitStack() as stack:
        weights = None
        if chosen.allow_pickle:
            weights = weights_as_safetensors(source, chosen, lambda: _folder_beside(target, stack))
        elif not Path(source).expanduser().exists():  # on the Hub: refuse before downloading the weights
            plan_conversion(source, target, chosen.without_search() if chosen.mechanism == AUTO else chosen)
        opened = open_source(source, revision=chosen.revision, token=chosen.token, weights=weights)
        plan = plan_conversion(opened, target, chosen, choose=choose)
        clock["planned"] = time.perf_counter()
        if not chosen.native:
            return _converted(plan, destination, chosen, text, clock, progress)
        choice = plan.native_twin
        if choice is not None and choice.reason:
            raise ExportError(f"The result would have no stock form: {choice.reason}")
        check_destination(target, *plan.source.protected, overwrite=chosen.overwrite)
        long, plain = _folder_beside(target, stack) / target.name, dataclasses.replace(chosen, native=False, overwrite=False)
        report = _converted(plan, long, plain, text, clock, progress)
        return export_native(long, target, verify=chosen.verify, overwrite=chosen.overwrite, progress=progress, converted=report)


def _folder_beside(target: Path, stack: contextlib.ExitStack) -> Path:
    """A new folder on the destination's disk, which `stack` removes."""
    beside = next(folder for folder in target.parents if folder.is_dir())
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".longattn-", dir=beside)))


def weights_as_safetensors(source: str | Path, chosen: ConversionConfig, new_folder: Callable[[], Path]) -> Path | None:
    """A new folder with the tensors of a source's .bin files as safetensors; ``None`` if it has no such files, or safetensors as well.

    They are read as ``from_pretrained`` reads them, with ``weights_only=True``, so that no code in them runs.

    Raises:
        CheckpointError: a file holds more than tensors, or is damaged.
    """
    folder = fetch_model(source, chosen.revision, chosen.token, weights=True)
    place = folder / (sentence_modules(folder)[0]["path"] if (folder / MODULES).is_file() else "")
    if has_safetensors(place):
        return None
    if folder != Path(source).expanduser():
        fetch_snapshot(str(source), chosen.revision, chosen.token, (PICKLED_WEIGHTS,))
    check_files(place, (PICKLED_WEIGHTS,))
    files = sorted(place.glob(PICKLED_WEIGHTS))
    if not files:
        return None
    weights, tensors = new_folder(), dict[str, Any]()
    with checkpoint_errors(f"The .bin files of {str(source)!r} hold more than tensors, or are damaged"):
        for file in files:
            tensors |= load_state_dict(file)
        save_torch_state_dict(tensors, weights)
    return weights


def _converted(
    plan: ConversionPlan,
    destination: str | Path,
    chosen: ConversionConfig,
    text: tuple[str, str],
    clock: dict[str, float],
    progress: StageProgress | None,
) -> ConversionReport:
    """Write and verify a planned conversion.

    Args:
        text: the text for verification, and where it is from.
        clock: the times "start" and "planned".
    """
    inputs = plan.kind.verification_inputs(plan, text, chosen.verify_audio) if chosen.verify else None
    return write_verified(
        plan,
        destination,
        clock,
        inputs,
        partial(verify_result, given_text=chosen.verify_text is not None, progress=progress),
        settings=chosen.to_dict(),
        report_file=CONVERSION_REPORT,
        overwrite=chosen.overwrite,
        longer=True,
        added=added_values(plan),
        generated=plan.decoder,
        finish=write_remote_code if chosen.remote_code else lambda stage: None,
        next_step=partial(training_step, plan),
        progress=progress,
    )


def training_step(plan: ConversionPlan) -> dict[str, Any]:
    """How to train the result, for the report: {"command": words} or {"advice": text}. "{model}" stands for the model's name.

    Language models train on long text (mlm or clm, by their head), or by attention distillation if a mechanism has parameters to learn;
    sentence encoders with such a mechanism also by distillation. Classifiers train on labelled documents or images; question-answering
    models, and encoders without a head, on questions.
    """
    if (step := plan.kind.training_step(plan)) is not None:
        return step
    length = f"texts of up to {plan.new_length} tokens"
    head = plan.architecture.source_class
    learns = any(mechanism.traits.trains for mechanism in layer_mechanisms(plan.attention, plan.shape, plan.new_length))
    texts = ("--text", "YOUR_TEXTS", "--max-length", str(plan.new_length))
    embeds = sentence_kind(plan.source.card_folder) == EMBEDDINGS
    if learns and embeds and plan.architecture.source_config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return train_command("linearise", "--stage", "1", *texts, output="trained")
    if embeds and plan.positions in DROPPED:
        short = ("--text", "YOUR_TEXTS", "--max-length", str(plan.old_length))
        return train_command("distill", "--method", "hidden", "--teacher", plan.source.name, *short, output="trained")
    if hint := plan.source.training_hint(plan.new_length):
        return {"advice": hint} if isinstance(hint, str) else train_command(*hint, output="trained")
    if head.endswith(LANGUAGE_MODELS) and plan.skeleton.get_output_embeddings() is not None:
        task = "linearise" if learns else "clm" if plan.shape.causal else "mlm"
        return train_command(task, *texts, output="trained")
    if head.endswith("ForConditionalGeneration"):
        return train_command("seq2seq", "--data", "YOUR_DATA.jsonl", "--max-length", str(plan.new_length), output="trained")
    for ending, task in (("ForSequenceClassification", "classify"), ("ForTokenClassification", "tokens")):
        if head.endswith(ending):
            return train_command(task, "--data", "YOUR_TEXTS", output="trained")
    if not plan.shape.causal and (head.endswith("ForQuestionAnswering") or "For" not in head):
        data = ("--data", "YOUR_QUESTIONS.json", "--epochs", "2", "--max-length", str(plan.new_length))
        return train_command("qa", *data, output="qa")
    return {"advice": f"fine-tune {{model}} with transformers' Trainer on {length}"}
