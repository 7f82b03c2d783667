"""Convert a checkpoint: plan → write → check. The folder is complete or does not appear."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..data.english import verification_text
from ..errors import CheckpointError
from ..evaluation.flops import layer_mechanisms
from ..files import (
    CONVERSION_REPORT,
    EMBEDDINGS,
    RERANKER,
    TOKEN_VECTORS,
    destination_path,
    ending_cleanly,
    read_json_object,
    sentence_kind,
    staged_folder,
    write_json,
)
from ..hub import write_remote_code
from ..modeling.family.definition import LANGUAGE_MODELS
from ..positions.tables import DROPPED
from ..reports import NEEDS_TRAINING, Check
from .check import Comparison, check_result
from .config import AUTO, ConversionConfig
from .folders import WOULD_TELL, ConversionReport, StageProgress, add_source_files, complete_result, train_command
from .model_loading import load_as_result, load_result, load_source, quiet_libraries
from .plan import Chooser, ConversionPlan, plan_conversion
from .plan_positions import StackLength
from .sources import open_source
from .stock import write_native


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
    start = time.perf_counter()
    text = verification_text(chosen.verify_text)
    with ending_cleanly():
        if not Path(source).expanduser().exists():  # on the Hub: refuse before downloading the weights
            plan_conversion(source, target, chosen.without_search() if chosen.mechanism == AUTO else chosen)
        opened = open_source(source, revision=chosen.revision, token=chosen.token, allow_pickle=chosen.allow_pickle)
        plan = plan_conversion(opened, target, chosen, choose=choose)
        times = [start, time.perf_counter()]
        if chosen.native and plan.native_twin is not None and plan.native_twin.reason:
            raise CheckpointError(f"The result would have no stock form: {plan.native_twin.reason}")
        stored = sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in opened.folder.glob(pattern))
        if plan.parameters > 4 * stored + 10**9:  # before memory is taken for what no file holds
            raise CheckpointError(
                f"The config.json of {opened.name!r} describes a model of {plan.parameters:,} parameters, and its weights have {stored:,} "
                "bytes; is it that of another model?"
            )
        with staged_folder(target, needed_bytes=(1 + chosen.native) * plan.total_bytes + 2**20, overwrite=chosen.overwrite) as stage:
            if not chosen.native:
                return _write(plan, stage, str(destination), chosen, text, times, progress)
            long = stage / LONG
            long.mkdir()
            converted = _write(plan, long, str(destination), chosen, text, times, progress)
            made = replace(open_source(long), name=opened.name)
            report = write_native(made, stage, str(destination), verify=chosen.verify, progress=progress, converted=converted)
            shutil.rmtree(long)
            return report


LONG = ".long"
"""Name of the folder of the long checkpoint from which a stock checkpoint is made."""


def _write(
    plan: ConversionPlan,
    stage: Path,
    name: str,
    chosen: ConversionConfig,
    text: tuple[str, str],
    times: Sequence[float],
    progress: StageProgress | None,
) -> ConversionReport:
    """Load the source as the planned result, write it into the empty folder ``stage``, and check what was written.

    Args:
        name: of the result, as the user typed it.
        text: the text for verification, and where it is from.
        times: when the conversion began, and when its plan was made.
    """
    source, architecture = plan.source, plan.architecture
    recording = None if chosen.verify_audio is None else Path(chosen.verify_audio)
    inputs = plan.kind.inputs(plan.config, source.folder, text, recording) if chosen.verify else None
    model, missing = load_as_result(source, architecture, plan.config, plan.cast)
    if progress is not None:
        progress("write", 0, plan.total_bytes)
    model.save_pretrained(stage, state_dict={tensor: value for tensor, value in model.state_dict().items() if tensor not in missing})
    del model
    dtype, written = source.config.get("dtype") or source.config.get("torch_dtype"), read_json_object(stage / "config.json")
    if plan.cast is None and dtype not in (None, written.get("dtype")):  # users load source and result alike, whatever the files have
        write_json(stage / "config.json", {**written, "dtype": dtype})
    add_source_files(
        source,
        stage,
        plan.new_length,
        longer=True,
        tokenizer_length=plan.tokenizer_length,
        generated=plan.decoder or StackLength(plan.old_length, plan.new_length),
        changed_files=plan.files,
    )
    times = [*times, time.perf_counter()]
    checks: list[Check] = []
    if inputs is not None:
        # of .bin files, both are rounded as config.json says
        original, lacking = load_source(source, architecture, "auto" if source.pickled else torch.float32)
        result, absent = load_result(stage, architecture, plan.config)
        names, given_text = (frozenset(lacking), frozenset(absent)), chosen.verify_text is not None
        checks = check_result(Comparison(plan, original.float(), result, stage, inputs, *names, given_text), progress)
        del original, result
    if chosen.remote_code:
        write_remote_code(stage)
    undecided = any(check.status == NEEDS_TRAINING or WOULD_TELL in check.values for check in checks)
    return complete_result(
        stage,
        source,
        name,
        CONVERSION_REPORT,
        checks,
        times,
        config=chosen.to_dict(),
        plan=plan.to_dict(),
        text="not verified" if inputs is None else inputs.describe(),
        next_step=training_step(plan) if undecided else None,
    )


SENTENCE_MODELS = {EMBEDDINGS: (), RERANKER: ("--reranker",), TOKEN_VECTORS: ("--multi-vector",)}
"""Models of sentence-transformers that `longattn train embed` trains -> its options."""


def training_step(plan: ConversionPlan) -> dict[str, Any]:
    """How to train the result, for the report: {"command": words} or {"advice": text}. "{model}" stands for the model's name.

    Language models train on long text (mlm or clm, by their head). If a mechanism has parameters to learn, language models and sentence
    encoders first learn softmax attention. Classifiers train on labelled documents or images; question-answering
    models, and encoders without a head, on questions.
    """
    if plan.training is not None:
        return dict(plan.training)
    head, kind = plan.architecture.source_class, sentence_kind(plan.source.card_folder)
    traits = [mechanism.traits for mechanism in layer_mechanisms(plan.attention, plan.shape, plan.new_length)]
    learns = any(trait.trains and trait.recursion is None for trait in traits)  # memory tokens belong to the model
    length = ("--max-length", str(plan.new_length))
    if learns and kind == EMBEDDINGS:
        return train_command("linearise", "--data", "YOUR_TEXTS", *length)
    if kind == EMBEDDINGS and plan.positions in DROPPED:
        teacher = ("--method", "hidden", "--teacher", plan.source.name)
        return train_command("distill", *teacher, "--data", "YOUR_TEXTS", "--max-length", str(plan.old_length))
    if kind in SENTENCE_MODELS:
        return train_command("embed", *SENTENCE_MODELS[kind], "--data", "YOUR_PAIRS.jsonl", *length)
    if kind is not None:
        return {"advice": f"fine-tune {{model}} with sentence-transformers' trainer on texts of up to {plan.new_length} tokens"}
    if head.endswith(LANGUAGE_MODELS) and plan.skeleton.get_output_embeddings() is not None:
        return train_command("linearise" if learns else "clm" if plan.shape.causal else "mlm", "--data", "YOUR_TEXTS", *length)
    if head.endswith("ForConditionalGeneration"):
        return train_command("seq2seq", "--data", "YOUR_DATA.jsonl", *length)
    for ending, task in (("ForSequenceClassification", "classify"), ("ForTokenClassification", "tokens")):
        if head.endswith(ending):
            return train_command(task, "--data", "YOUR_TEXTS")
    if not plan.shape.causal and (head.endswith("ForQuestionAnswering") or "For" not in head):
        return train_command("qa", "--data", "YOUR_QUESTIONS.json", "--epochs", "2", *length, output="qa")
    return {"advice": f"fine-tune {{model}} with transformers' Trainer on texts of up to {plan.new_length} tokens"}
