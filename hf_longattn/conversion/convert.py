"""Convert a checkpoint: plan → write → check. The result's folder appears complete, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError, OptionError, checkpoint_errors
from ..evaluation.token_loss import verification_text
from ..files import (
    CONVERSION_REPORT,
    EMBEDDINGS,
    RERANKER,
    TOKEN_VECTORS,
    check_destination,
    destination_path,
    ending_cleanly,
    sentence_class,
    staged_folder,
)
from ..hub import write_remote_code
from ..modeling.costs import layer_mechanisms
from ..modeling.family.definition import LANGUAGE_MODELS
from ..modeling.family.sliding_window import own_windows
from ..modeling.generic import check_class
from ..positions.tables import DROPPED
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, Check
from .architecture import Architecture, find_architecture
from .check import Comparison, check_tensors, load_both
from .check_texts import TEXTS
from .folders import (
    POSITIONS,
    READY,
    UNKNOWN,
    VERDICT,
    WOULD_TELL,
    ConversionReport,
    StageProgress,
    add_source_files,
    complete_result,
    no_progress,
    train_command,
)
from .images import IMAGES
from .load import load_as_result, quiet_libraries
from .modality import SETTINGS, Modality
from .plain import PLAIN
from .plan import ConversionPlan, stack_lengths
from .settings import AUTO, ConversionConfig
from .sounds import SOUNDS
from .source import Source, open_source, with_weights
from .towers import TOWERS

MODALITIES: dict[str, Modality] = {"text": TEXTS, "grid": IMAGES, "sound": SOUNDS, "towers": TOWERS, "plain": PLAIN}
"""The kind of input that a family reads, as in its spec -> the functions of a conversion for this kind."""
Chooser = Callable[[Source, ConversionConfig], tuple[LongAttentionConfig, Mapping[str, Any]]]
"""A function that chooses mechanisms for an opened source and its settings. It returns the attention, and facts about
the choice for reports."""


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

    ::

        convert_checkpoint(
            "google-bert/bert-base-uncased", "bert-4096", mechanism="longformer", window=512, max_length=4096
        )

    Args:
        source: a folder (transformers or sentence-transformers), or a Hub repository id.
        destination: a folder that does not exist yet. It appears complete, or not at all.
        config: the settings. Without it, fields of :class:`~hf_longattn.ConversionConfig` are keywords, and other
            keywords are mechanism options. If option names come from a user, pass them as the mapping ``options``.
        choose: the function that chooses mechanisms for ``mechanism="auto"``:
            :func:`hf_longattn.search.choose_mechanisms`.
        progress: called as ``progress(stage, done, total)``.

    Returns:
        The report, which is also in the destination's conversion_report.json.

    Raises:
        LongAttentionError: the conversion failed for the reason in the message, and nothing was written.
    """
    request = ConversionConfig.from_keywords(config, settings)
    target = destination_path(destination)
    text = verification_text(request.verify_text)
    with ending_cleanly():
        plan = plan_conversion(source, target, request, choose=choose)
        opened = with_weights(plan.source, request.token, allow_pickle=request.allow_pickle)
        plan = replace(plan, source=opened)
        check_class(opened.name, opened.folder, opened.config, allow_pickle=opened.pickled)
        stored = sum(
            path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in opened.folder.glob(pattern)
        )
        # refused before memory is allocated for weights that are in no file
        if plan.parameters > 4 * stored + 10**9:
            raise CheckpointError(
                f"The config.json of {opened.name!r} describes a model of {plan.parameters:,} parameters, but its "
                f"weights have {stored:,} bytes; does it belong to another model?"
            )
        with staged_folder(target, overwrite=request.overwrite) as stage:
            inputs = None
            if request.verify:
                recording = None if request.verify_audio is None else Path(request.verify_audio)
                inputs = modality_of(plan.architecture).inputs(
                    plan.architecture.family, plan.config, opened.folder, text, recording
                )

            # load the source with the result's class, and write it
            model, missing = load_as_result(opened, plan.architecture, plan.config, None)
            progress("write", 0, plan.parameters * plan.shape.element_bytes)
            model.save_pretrained(
                stage, state_dict={name: value for name, value in model.state_dict().items() if name not in missing}
            )
            del model
            add_source_files(opened, stage, plan.new_length, plan)

            # load the written files, and compare them with the source
            checks: list[Check] = []
            described = "not verified"
            if inputs is not None:
                checks = check_result(load_both(plan, stage, inputs), progress)
                described = inputs.describe()
            if request.remote_code:
                write_remote_code(stage)
            undecided = any(check.status == NEEDS_TRAINING or WOULD_TELL in check.values for check in checks)
            return complete_result(
                stage,
                opened,
                str(destination),
                CONVERSION_REPORT,
                checks,
                config=request.to_dict(),
                plan=plan.to_dict(),
                text=described,
                next_step=training_step(plan) if undecided else None,
            )


@quiet_libraries()
def plan_conversion(
    source: str | Path | Source,
    destination: str | Path | None = None,
    config: ConversionConfig | None = None,
    *,
    choose: Chooser | None = None,
    **settings: Any,
) -> ConversionPlan:
    """Plan a conversion without running it.

    Args:
        source: a folder, a Hub repository id, or an opened source.
        destination: the folder of the result. If it is given, it is checked as in a conversion.
        config: the settings. Without it, the settings and the mechanism's options are keywords.
        choose: the function that chooses mechanisms for ``mechanism="auto"``:
            :func:`hf_longattn.search.choose_mechanisms`.

    Raises:
        LongAttentionError: the conversion would fail for the reason in the message.
    """
    request = ConversionConfig.from_keywords(config, settings)
    auto = request.mechanism == AUTO
    if not auto and (request.mechanism is not None or request.long_attention is not None):
        request.attention()  # refuses a mistyped name before anything is downloaded
    if isinstance(source, Source):
        opened = source
    else:
        opened = open_source(source, request.revision, request.token, weights=False)
    if destination is not None:
        check_destination(Path(destination), opened.folder, opened.card_folder, overwrite=request.overwrite)
    architecture = find_architecture(opened, request)
    modality = modality_of(architecture)
    check_settings(modality, architecture, request)
    if not auto:
        return modality.plan(opened, architecture, request)

    # mechanism="auto": a rule for decoders, otherwise a search, which takes minutes
    chosen = chosen_for_decoder(opened, architecture, request)
    if chosen is None:
        if choose is None:
            raise OptionError(
                "mechanism='auto' searches: pass choose=hf_longattn.search.choose_mechanisms, or name a mechanism."
            )
        opened = with_weights(opened, request.token, allow_pickle=request.allow_pickle)
        chosen = choose(opened, request)
    attention, choice = chosen
    request = replace(request.without_search(), long_attention=attention)
    return replace(modality.plan(opened, architecture, request), choice=choice)


def check_settings(modality: Modality, architecture: Architecture, request: ConversionConfig) -> None:
    """Raise :class:`OptionError` for a setting that does not apply to this kind of model."""
    for name, reason in SETTINGS.items():
        applies = name in modality.settings and (architecture.encoder_decoder or "decoder" not in name)
        if getattr(request, name) is not None and not applies:
            predicate = modality.predicate or f"reads {architecture.family.spec.nouns}"
            raise OptionError(f"{reason}, but a {architecture.source_class} {predicate}; leave it out.")


def modality_of(architecture: Architecture) -> Modality:
    return MODALITIES[architecture.family.spec.reads]


DECODER_WINDOW, DECODER_SINKS = 1024, 4
"""Window and number of sinks, in tokens, of a decoder with ``mechanism="auto"``. The window is at most half of the old
length."""


def chosen_for_decoder(
    opened: Source, architecture: Architecture, request: ConversionConfig
) -> tuple[LongAttentionConfig | None, Mapping[str, Any]] | None:
    """The attention of a decoder with ``mechanism="auto"``: a window and sinks in every layer that has no window yet.

    Returns:
        The attention (``None`` if every layer has a window), and the reason for reports. Returns ``None`` if this rule
        does not apply: for encoders, for models with two stacks, and if a budget or an input for a search is given.
    """
    base = architecture.source_config
    if request.budget is not None or request.search_input is not None or architecture.family.spec.noun != "text":
        return None
    if architecture.original_attention is not None or architecture.encoder_decoder:
        return None
    causal = architecture.long_config(None).attending[1]
    if not causal:
        return None
    search = "--budget 0.25 would search for other mechanisms"
    windows = own_windows(base)  # None for a layer with full attention
    if None not in windows:
        return None, {"reason": f"Every layer keeps its own window; {search}."}
    window = min(DECODER_WINDOW, stack_lengths(opened, architecture, request)[0].old // 2)
    exception = "; layers with a window of their own keep it" if any(windows) else ""
    reason = (
        f"window={window} with {DECODER_SINKS} sinks loses least without training in a cache of constant "
        f"size{exception}; {search}."
    )
    return LongAttentionConfig("window", window=window, num_sinks=DECODER_SINKS), {"reason": reason}


def check_result(comparison: Comparison, progress: StageProgress = no_progress) -> list[Check]:
    """Check the tensors, the tokenizer or processor, and the outputs of a written result. A failed step is the
    last."""
    plan, modality = comparison.plan, modality_of(comparison.plan.architecture)
    steps: list[Callable[[], list[Check]]] = [
        lambda: check_tensors(comparison),
        lambda: modality.check_processor(plan, comparison.folder, comparison.inputs),
        lambda: modality.check(comparison),
    ]
    checks: list[Check] = []
    progress("verify", 0, len(steps))
    with checkpoint_errors(
        "Verification failed, so nothing was kept: source or result does not run (--no-verify skips this)"
    ):
        for done, step in enumerate(steps, 1):
            checks += step()
            if any(check.status == FAILED for check in checks):
                break
            progress("verify", done, len(steps))
    return labelled(plan, checks)


def labelled(plan: ConversionPlan, checks: Sequence[Check]) -> list[Check]:
    """The checks with their final status, and the plan's warnings as further checks.

    One check may have a verdict on training. Warnings and differing outputs get its status. Without a verdict, they
    get the status "needs training".
    """
    status = NEEDS_TRAINING
    warnings = [str(warning).rstrip(".") for warning in plan.warnings]
    deciding = next((check for check in checks if VERDICT in check.values), None)
    if deciding is not None and deciding.values[VERDICT] != UNKNOWN:
        status = deciding.status
        if status == MEASURED:
            warnings = [f"{warning.problem}, but the result is {READY} ({deciding.name})" for warning in plan.warnings]
    checks = [replace(check, status=status) if check.status == NEEDS_TRAINING else check for check in checks]
    return [*checks, *(Check(POSITIONS, status, warning) for warning in warnings)]


SENTENCE_MODELS = {EMBEDDINGS: (), RERANKER: ("--reranker",), TOKEN_VECTORS: ("--multi-vector",)}
"""Class of sentence-transformers -> options of `longattn train embed` that train this class."""


def training_step(plan: ConversionPlan) -> dict[str, Any]:
    """How to train the result, for the report: ``{"command": words}`` or ``{"advice": text}``.

    "{model}" in the words or the text stands for the result's name.
    """
    if plan.training is not None:
        return plan.training
    saved_by = sentence_class(plan.source.card_folder)
    words = training_words(plan, saved_by)
    if words:
        return train_command(*words, output="qa" if words[0] == "qa" else "trained")
    trainer = "transformers' Trainer" if saved_by is None else "sentence-transformers' trainer"
    return {"advice": f"fine-tune {{model}} with {trainer} on texts of up to {plan.new_length} tokens"}


def training_words(plan: ConversionPlan, saved_by: str | None) -> tuple[str, ...]:
    """The words after ``longattn train`` that train the result. Empty if no task trains it.

    saved_by: the class of sentence-transformers that saved the source, or ``None``.
    """
    head, causal = plan.architecture.source_class, plan.shape.causal
    texts, length = ("--data", "YOUR_TEXTS"), ("--max-length", str(plan.new_length))
    layers = layer_mechanisms(plan.attention, plan.shape, plan.new_length)
    # whether a mechanism has parameters to train before use; those of memory tokens are trained with the model
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
