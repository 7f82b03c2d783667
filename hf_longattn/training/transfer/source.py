"""The model that a transfer starts from: converted already, or converted now; with the weights of a teacher where one is given."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.mechanisms import Mechanism
from hf_longattn.training.lm_finetune import load_lm
from hf_longattn.training.transfer.settings import TransferSettings

CONVERTED = "converted"
SHAPE = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "vocab_size")


def processes() -> PartialState:
    """Which process this is, of how many; without a GPU they meet on the processor."""
    return PartialState(cpu=not torch.cuda.is_available())


def load_student(settings: TransferSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The model whose mechanisms are to learn, its tokenizer and its objective ("mlm" or "clm").

    With ``settings.mechanism``, ``settings.model`` is converted into OUTPUT/converted first (by the first process).

    Raises:
        CheckpointError: it cannot be loaded, or the teacher has another shape.
        OptionError: it is no converted checkpoint and no mechanism was given.
    """
    source = settings.model
    if settings.mechanism:
        source = str(Path(settings.output) / CONVERTED)
        if processes().is_main_process and not (settings.resume and Path(source, "config.json").exists()):
            length = _grown(settings.model, settings.max_length)
            convert_checkpoint(settings.model, source, long_attention=settings.attention(), max_length=length, overwrite=True)
        processes().wait_for_everyone()
    model, tokenizer, objective = load_lm(source, settings.objective)
    if not any(isinstance(module, Mechanism) for module in model.modules()):
        raise OptionError(
            f"{settings.model!r} has no long attention yet; say --mechanism NAME, or convert it first: "
            f"longattn convert {settings.model} DST --mechanism NAME"
        )
    if settings.teacher:
        model = with_weights_of(settings.teacher, model)
    return model, tokenizer, objective


def with_weights_of(teacher: str, student: PreTrainedModel) -> PreTrainedModel:
    """A model of the student's configuration with the teacher's weights, and the student's in its mechanisms. Its position table is the
    teacher's, extended where the student's is longer.

    Raises:
        CheckpointError: the teacher cannot be loaded, or has another shape.
    """
    check_shape(teacher, student)
    try:
        model = type(student).from_pretrained(teacher, config=student.config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load teacher {teacher!r}: {str(error).splitlines()[0]}") from error
    for name, module in student.named_modules():
        if isinstance(module, Mechanism):
            model.get_submodule(name).load_state_dict(module.state_dict())
    return model


def check_shape(teacher: str, student: PreTrainedModel) -> None:
    """Refuse a teacher whose attention outputs the student could not match, or whose weights do not fit."""
    try:
        config = AutoConfig.from_pretrained(teacher)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load teacher {teacher!r}: {str(error).splitlines()[0]}") from error
    own = student.config
    kinds = [str(one.model_type).removeprefix("long_") for one in (config, own)]
    differing = [f"model_type is {kinds[0]!r}, not {kinds[1]!r}"] if kinds[0] != kinds[1] else []
    for name in SHAPE:
        theirs, ours = getattr(config, name, None), getattr(own, name, None)
        if theirs != ours:
            differing.append(f"{name} is {theirs}, not {ours}")
    if differing:
        raise CheckpointError(
            f"teacher {teacher!r} has another shape than the student ({'; '.join(differing)}); "
            "give the checkpoint that the student was converted from, or leave --teacher out"
        )


def _grown(model: str, max_length: int | None) -> int | None:
    """The length to convert to: ``None``, the model's own, where the training inputs are no longer than that."""
    try:
        own = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", 0)
    except (OSError, ValueError):
        return max_length  # the conversion says what is wrong with it
    return max_length if max_length is not None and max_length > own else None
