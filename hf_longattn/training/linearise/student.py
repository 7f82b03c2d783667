"""The student: converted before or now, optionally with a teacher's weights, and with low-rank updates in stage 2."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.data.batching import processes
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.loading import load_config, load_model, load_weights
from hf_longattn.mechanisms import Mechanism
from hf_longattn.modeling.family.definition import LANGUAGE_MODELS
from hf_longattn.modeling.inference.pruning import KEPT_HEADS
from hf_longattn.training.linearise.args import LineariseModelArguments, LineariseTrainingArguments
from hf_longattn.training.old_lm import TextDataArguments, check_trains, load_lm

CONVERTED = "converted"
PREDICT_TOKENS = (*LANGUAGE_MODELS, "ForConditionalGeneration")
"""Endings of classes with a language-modelling head."""
SHAPE = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size", KEPT_HEADS)


def load_student(
    model_args: LineariseModelArguments, data_args: TextDataArguments, training_args: LineariseTrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The model whose mechanisms are trained, its tokenizer and its objective ("mlm" or "clm").

    With ``model_args.mechanism``, ``model_args.model`` is converted into OUTPUT/converted first (by the first process).

    Raises:
        CheckpointError: the model cannot be loaded, or the teacher differs in shape.
        OptionError: the model is not converted and no mechanism is set, or the model predicts no tokens.
    """
    source = student_source(model_args, training_args)
    needs_head = training_args.runs(2) or bool(training_args.softmax_layers)
    if model_args.mechanism:
        if processes().is_main_process and not (training_args.resume and Path(source, "config.json").exists()):
            plan = plan_conversion(model_args.model, long_attention=model_args.attention())
            check_trains(plan.architecture.source_config, model_args.model)
            check_head(model_args.model, plan.architecture.source_class, needs_head)
            length = max(plan.old_length, data_args.max_length or 0)  # training inputs may be shorter than the model
            convert_checkpoint(model_args.model, source, long_attention=model_args.attention(), max_length=length, overwrite=True)
        processes().wait_for_everyone()
    model, tokenizer, objective = load_lm(source, "auto")
    processes().wait_for_everyone()  # a refusal after this line removes the conversion, which all processes have read by then
    if not any(isinstance(module, Mechanism) for module in model.modules()):
        raise OptionError(
            f"{model_args.model!r} has no long attention yet; add --mechanism NAME, or convert it first: "
            f"longattn convert {model_args.model} DST --mechanism NAME"
        )
    check_head(model_args.model, _architecture(model), needs_head)
    if model_args.teacher:
        model = with_weights_of(model_args.teacher, model)
    return model, tokenizer, objective


def student_source(model_args: LineariseModelArguments, training_args: LineariseTrainingArguments) -> str:
    """The converted checkpoint: ``--model``, or with ``--mechanism`` its conversion."""
    return str(training_args.folder / CONVERTED) if model_args.mechanism else model_args.model


def predicts_tokens(model: PreTrainedModel) -> bool:
    """Whether the checkpoint of a loaded model has a language-modelling head; without one, the model's head is random."""
    return not _is_base(_architecture(model))


def as_saved(model: PreTrainedModel, source: str) -> PreTrainedModel:
    """The model of the class that ``source`` names, without a head that this checkpoint lacks."""
    if predicts_tokens(model):
        return model
    base: PreTrainedModel = load_model(AutoModel, source, config=model.config, dtype=model.dtype)
    base.load_state_dict(model.base_model.state_dict(), strict=False)  # only the base has a pooler
    return base


def with_weights_of(teacher: str, student: PreTrainedModel) -> PreTrainedModel:
    """A model with the student's configuration and mechanisms and the teacher's weights. The teacher's position table is extended to the
    student's length.

    Raises:
        CheckpointError: the teacher cannot be loaded, or differs in shape.
    """
    check_shape(teacher, student)
    model: PreTrainedModel = load_weights(type(student), teacher, config=student.config, dtype=torch.float32)
    for name, module in student.named_modules():
        if isinstance(module, Mechanism):
            model.get_submodule(name).load_state_dict(module.state_dict())
    return model


def check_shape(teacher: str, student: PreTrainedModel) -> None:
    """Refuse a teacher whose attention outputs or weights do not fit the student."""
    config = load_config(teacher)
    student_config = student.config
    kinds = [str(model_config.model_type).removeprefix("long_") for model_config in (config, student_config)]
    differing = [f"model_type is {kinds[0]!r}, not {kinds[1]!r}"] if kinds[0] != kinds[1] else []
    for name in SHAPE:
        teacher_value, student_value = getattr(config, name, None), getattr(student_config, name, None)
        if teacher_value != student_value:
            differing.append(f"{name} is {teacher_value}, not {student_value}")
    if differing:
        raise CheckpointError(
            f"The teacher {teacher!r} differs in shape from the student ({'; '.join(differing)}); "
            "give the checkpoint that the student was converted from, or leave --teacher out."
        )


def check_head(name: str, architecture: str, needs_head: bool) -> None:
    """Refuse a checkpoint whose head predicts no tokens: a language-modelling head of random weights would replace it.

    Without a head, only stage 1 can run, since it compares attention outputs.

    Raises:
        OptionError: the checkpoint has another head, or none although stage 2 needs one.
    """
    base = _is_base(architecture)
    if not architecture or architecture.endswith(PREDICT_TOKENS) or (base and not needs_head):
        return
    advice = "add --stage 1 and leave --softmax-layers out, or " if base else ""
    raise OptionError(
        f"{name!r} is a {architecture}, which predicts no tokens; {advice}give the checkpoint with a language-modelling head that it was "
        "made from."
    )


def _is_base(architecture: str) -> bool:
    return architecture.endswith("Model") and not architecture.endswith(PREDICT_TOKENS)


def _architecture(model: PreTrainedModel) -> str:
    return str((model.config.architectures or [""])[0])
