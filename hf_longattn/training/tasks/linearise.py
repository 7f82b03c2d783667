"""Train a converted model to reproduce softmax attention."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_longattn.data.batching import processes
from hf_longattn.data.lengths import input_length
from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.data.tokenization import to_inputs
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.files import CONVERSION_REPORT, read_json_object
from hf_longattn.hub import check_login
from hf_longattn.mechanisms import Mechanism
from hf_longattn.training.checkpoints import (
    CHECKPOINTS,
    DISTILLATION_REPORT,
    STAGE_1,
    check_same_data,
    check_same_model,
    check_same_name,
    checkpoints,
    finished_part,
    newest_of_stage,
    stage_checkpoints,
)
from hf_longattn.training.linearise.args import LineariseModelArguments, LineariseTrainingArguments
from hf_longattn.training.linearise.layers import number_to_restore
from hf_longattn.training.linearise.stages import Stages, held_out_batches, markdown, read_report
from hf_longattn.training.linearise.student import CONVERTED, load_student, predicts_tokens
from hf_longattn.training.linearise.teacher import check_original
from hf_longattn.training.old_lm import TextDataArguments, read_documents
from hf_longattn.training.results import sources_in_words
from hf_longattn.training.task import Task
from hf_longattn.training.training_args import TaskArguments
from hf_longattn.training.training_loop import check_holds_no_model, check_rows, prepare_run

HELD_OUT_INPUTS = 32
"""Maximum number of inputs on which the report's losses are measured. Untuned."""
LINEARISE = (LineariseModelArguments, TextDataArguments, LineariseTrainingArguments)


def linearise_attention(
    model_args: LineariseModelArguments, data_args: TextDataArguments, training_args: LineariseTrainingArguments
) -> dict[str, Any]:
    """Train the mechanisms of a converted checkpoint to reproduce softmax attention, fine-tune, and write to
    ``training_args.output_dir``.

    The folder gets the checkpoint, ``distillation_report.json`` (with Trainer's history of each stage) and ``.md``, the model after
    stage 1 in ``stage1``, and, if ``save_steps`` asks for them, checkpoints to resume from in ``checkpoints``.

    Returns:
        The report.

    Raises:
        LongAttentionError: something is wrong with the arguments, the model or the text.
        DivergenceError: a loss or gradient became NaN; the last good checkpoint is kept.
    """
    run = prepare_run(model_args, data_args, training_args, check_output)
    check_converted(model_args, training_args)
    if training_args.resume:
        check_resumable(run)
    if training_args.push_to_hub:  # before the work that is to be uploaded
        check_login(training_args.repository, training_args.hub_token, private=bool(training_args.hub_private_repo))
    if training_args.overwrite and not training_args.resume and processes().is_main_process:
        for old in (training_args.folder / STAGE_1, *(stage_checkpoints(training_args.folder, stage) for stage in (1, 2))):
            shutil.rmtree(old, ignore_errors=True)
    processes().wait_for_everyone()
    with removed_if_useless(training_args):
        return distil(run, model_args, data_args, training_args)


def distil(
    run: TaskArguments, model_args: LineariseModelArguments, data_args: TextDataArguments, training_args: LineariseTrainingArguments
) -> dict[str, Any]:
    """Run the distillation after the checks of its output, and return the report."""
    model, tokenizer, objective = load_student(model_args, data_args, training_args)
    length = input_length(model, tokenizer, data_args.max_length)
    if training_args.runs(1):
        check_learns(model)
    if training_args.softmax_layers:  # refuse here, not after stage 1, which may take hours
        number_to_restore(model, training_args.softmax_layers)
    if training_args.runs(2) and training_args.needs_teacher:
        check_original(model_args)
    with processes().main_process_first():
        documents, held_out = read_documents(data_args, training_args.seed)
    masks = RepeatableMasks(tokenizer, mlm=objective == "mlm", mlm_probability=data_args.mask_probability, seed=training_args.seed)
    size = training_args.per_device_train_batch_size
    inputs = to_inputs(held_out, tokenizer, length)
    check_rows(inputs, data_args.validation or f"{sources_in_words(run.settings)} (held out)", "evaluate on")
    batches = held_out_batches(inputs, masks, HELD_OUT_INPUTS, size)
    return Stages(run, model_args, training_args, tokenizer, objective, length, documents, masks, batches).all_stages(model)


@contextmanager
def removed_if_useless(args: LineariseTrainingArguments) -> Iterator[None]:
    """Remove the files of a failed run unless a run can resume from them. Otherwise the next run would be refused."""
    made = [path for path in (args.folder / CONVERTED, args.folder / CHECKPOINTS) if not path.exists()]
    try:
        yield
    except BaseException:
        resumable = finished_part(args.folder) is not None or any(checkpoints(stage_checkpoints(args.folder, stage)) for stage in (1, 2))
        if processes().is_main_process and not resumable:
            for path in made:
                shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):  # not empty
                args.folder.rmdir()
        raise


def check_output(args: LineariseTrainingArguments) -> None:
    """Refuse to write over an earlier distillation, or another model.

    Raises:
        OptionError: the output holds a distillation, finished or not, without ``resume`` or ``overwrite``.
    """
    if args.resume or args.overwrite:
        return
    if (args.folder / DISTILLATION_REPORT).exists():
        raise OptionError(f"{args.output_dir!r} holds a finished distillation; give another --output, or add --overwrite to replace it.")
    if any(folder.exists() for folder in (args.folder / STAGE_1, *(stage_checkpoints(args.folder, stage) for stage in (1, 2)))):
        raise OptionError(
            f"{args.output_dir!r} holds checkpoints of an earlier run; add --resume to continue it, --overwrite to start again, or give "
            "another --output."
        )
    check_holds_no_model(args)


def check_converted(model_args: LineariseModelArguments, args: LineariseTrainingArguments) -> None:
    """Refuse to convert ``--model`` over another folder in the output.

    Raises:
        OptionError: the folder is not a conversion of ``--model``, without ``resume`` or ``overwrite``.
    """
    folder = args.folder / CONVERTED
    if not model_args.mechanism or args.resume or args.overwrite or not folder.exists():
        return
    report = folder / CONVERSION_REPORT
    plan = read_json_object(report).get("plan") if report.is_file() else None
    if not isinstance(plan, dict) or plan.get("source") != model_args.model:
        raise OptionError(
            f"{str(folder)!r}, which --model is converted into, holds something else; give another --output, or add --overwrite."
        )


def check_resumable(run: TaskArguments) -> None:
    """Refuse to resume without a checkpoint, or a distillation of another model or of other data.

    Raises:
        CheckpointError: with one sentence.
    """
    args: Any = run.training
    report = read_report(args.folder / STAGE_1)
    if report is not None:
        check_same_name(report["settings"].get("model"), run.model.model, args.folder)
        check_same_data(report["settings"], run, args.folder)
    newest = [start for stage in (1, 2) if (start := newest_of_stage(args.folder, stage)) is not None]
    for start in newest:
        check_same_model(Path(start), run.model.model, run=run)
    if not newest and finished_part(args.folder) is None:
        raise CheckpointError(f"There is no checkpoint in {args.output_dir!r} to resume from; leave --resume out to start anew.")


def check_learns(model: PreTrainedModel) -> None:
    """Refuse stage 1 for a model whose mechanisms have no parameters."""
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    if not any(p.requires_grad for mechanism in mechanisms for p in mechanism.parameters()):
        names = ", ".join(dict.fromkeys(repr(mechanism.name) for mechanism in mechanisms))
        advice = (
            "give --stage 2, which fine-tunes the model's projections"
            if predicts_tokens(model)
            else "convert with a mechanism that has some, such as hedgehog, or train the model for its task"
        )
        raise OptionError(f"Stage 1 trains the mechanisms' parameters, and {names} has none with these options; {advice}.")


TASK = Task(arguments=LINEARISE, train=linearise_attention, result=markdown)
