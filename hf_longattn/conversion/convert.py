"""Convert a checkpoint: plan → write → check. The folder is complete or does not appear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..evaluation.token_loss import verification_text
from ..files import (
    CONVERSION_REPORT,
    EMBEDDINGS,
    RERANKER,
    TOKEN_VECTORS,
    destination_path,
    ending_cleanly,
    sentence_class,
    staged_folder,
)
from ..hub import write_remote_code
from ..modeling.costs import layer_mechanisms
from ..modeling.family.definition import LANGUAGE_MODELS
from ..positions.tables import DROPPED
from ..reports import NEEDS_TRAINING, Check
from .check import check_result, load_both
from .folders import (
    WOULD_TELL,
    ConversionReport,
    StageProgress,
    add_source_files,
    complete_result,
    no_progress,
    train_command,
)
from .plan import Chooser, ConversionPlan, plan_conversion
from .settings import AUTO, ConversionConfig
from .source_models import load_as_result, open_source, quiet_libraries


@quiet_libraries()
def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    config: ConversionConfig | None = None,
    *,
    choose: Chooser | None = None,
    progress: StageProgress = no_progress,
    **settings: Any,
) -> ConversionReport:
    """Turn a short checkpoint into a long one, and check the files that were written.

        convert_checkpoint("google-bert/bert-base-uncased", "bert-4096", mechanism="longformer", window=512,
        max_length=4096)

    Args:
        source: a folder (transformers or sentence-transformers), or a Hub repository id.
        destination: a folder that does not exist yet. It appears complete, or not at all.
        config: the settings; or its fields as keywords, see :class:`~hf_longattn.ConversionConfig`. Other keywords are
            mechanism options. If option names come from a user, pass them as the mapping `options`.
        choose: the function that chooses mechanisms for ``mechanism="auto"``:
            :func:`hf_longattn.search.choose_mechanisms`.
        progress: called as progress(stage, done, total).

    Returns:
        The report, which is also in the destination's conversion_report.json.

    Raises:
        LongAttentionError: the conversion failed, for the reason in its sentence, and nothing was written.
    """
    chosen = ConversionConfig.from_keywords(config, settings)
    target = destination_path(destination)
    text = verification_text(chosen.verify_text)
    with ending_cleanly():
        if not Path(source).expanduser().exists():  # on the Hub: refuse before downloading the weights
            first = chosen
            if chosen.mechanism == AUTO:
                first = chosen.without_search()
            plan_conversion(source, target, first)
        opened = open_source(source, revision=chosen.revision, token=chosen.token, allow_pickle=chosen.allow_pickle)
        plan = plan_conversion(opened, target, chosen, choose=choose)
        stored = sum(
            path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in opened.folder.glob(pattern)
        )
        if plan.parameters > 4 * stored + 10**9:  # before allocating weights that no file has
            raise CheckpointError(
                f"The config.json of {opened.name!r} describes a model of {plan.parameters:,} parameters, and its "
                f"weights have {stored:,} "
                "bytes; does it belong to another model?"
            )
        with staged_folder(target, overwrite=chosen.overwrite) as stage:
            inputs = None
            if chosen.verify:
                recording = None if chosen.verify_audio is None else Path(chosen.verify_audio)
                inputs = plan.modality.inputs(plan.config, opened.folder, text, recording)
            model, missing = load_as_result(opened, plan.architecture, plan.config, None)
            progress("write", 0, plan.parameters * plan.shape.element_bytes)
            model.save_pretrained(
                stage, state_dict={name: value for name, value in model.state_dict().items() if name not in missing}
            )
            del model
            add_source_files(opened, stage, plan.new_length, plan)
            checks: list[Check] = []
            described = "not verified"
            if inputs is not None:
                checks = check_result(load_both(plan, stage, inputs), progress)
                described = inputs.describe()
            if chosen.remote_code:
                write_remote_code(stage)
            undecided = any(check.status == NEEDS_TRAINING or WOULD_TELL in check.values for check in checks)
            return complete_result(
                stage,
                opened,
                str(destination),
                CONVERSION_REPORT,
                checks,
                config=chosen.to_dict(),
                plan=plan.to_dict(),
                text=described,
                next_step=training_step(plan) if undecided else None,
            )


SENTENCE_MODELS = {EMBEDDINGS: (), RERANKER: ("--reranker",), TOKEN_VECTORS: ("--multi-vector",)}
"""Class of sentence-transformers -> options of `longattn train embed` for training it."""


def training_step(plan: ConversionPlan) -> dict[str, Any]:
    """How to train the result, for the report: {"command": words} or {"advice": text}. "{model}" stands for the
    model's name."""
    if plan.training is not None:
        return dict(plan.training)
    saved_by = sentence_class(plan.source.card_folder)
    words = training_words(plan, saved_by)
    if words:
        return train_command(*words, output="qa" if words[0] == "qa" else "trained")
    trainer = "transformers' Trainer" if saved_by is None else "sentence-transformers' trainer"
    return {"advice": f"fine-tune {{model}} with {trainer} on texts of up to {plan.new_length} tokens"}


def training_words(plan: ConversionPlan, saved_by: str | None) -> tuple[str, ...]:
    """The words after ``longattn train``; empty if no task trains the result.

    ``saved_by``: the class of sentence-transformers that saved the source.
    """
    head, causal = plan.architecture.source_class, plan.shape.causal
    texts, length = ("--data", "YOUR_TEXTS"), ("--max-length", str(plan.new_length))
    layers = layer_mechanisms(plan.attention, plan.shape, plan.new_length)
    # memory tokens train with the model
    learns = any(layer.capabilities.trains and layer.capabilities.recursion is None for layer in layers)
    if saved_by == EMBEDDINGS and learns:
        return "linearise", *texts, *length
    if saved_by == EMBEDDINGS and plan.positions in DROPPED:
        teacher = ("--method", "hidden", "--teacher", plan.source.name)
        return "distill", *teacher, *texts, "--max-length", str(plan.old_length)
    if saved_by is not None:
        options = SENTENCE_MODELS.get(saved_by)
        return () if options is None else ("embed", *options, "--data", "YOUR_PAIRS.jsonl", *length)
    if head.endswith(LANGUAGE_MODELS) and plan.skeleton.get_output_embeddings() is not None:
        task = "clm" if causal else "mlm"
        return "linearise" if learns else task, *texts, *length
    if head.endswith("ForConditionalGeneration"):
        return "seq2seq", "--data", "YOUR_DATA.jsonl", *length
    if head.endswith("ForSequenceClassification"):
        return "classify", *texts
    if head.endswith("ForTokenClassification"):
        return "tokens", *texts
    if not causal and (head.endswith("ForQuestionAnswering") or "For" not in head):
        return "qa", "--data", "YOUR_QUESTIONS.json", "--epochs", "2", *length
    return ()
