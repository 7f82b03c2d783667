"""Train a converted model further on long text, by the objective of its head, and say what it gained."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training import course
from hf_longattn.training.lm_data import read_documents, to_inputs
from hf_longattn.training.lm_settings import LMSettings
from hf_longattn.training.segment_trainer import SegmentTrainer
from hf_longattn.training.segments import SegmentCollator, SegmentStream, tokenised
from hf_longattn.training.settings import training_arguments
from hf_longattn.training.timed_trainer import TimedTrainer, average_over_batches
from hf_longattn.training.versions import versions

_TASKS = {"mlm": "predict masked tokens", "clm": "predict the next token from those before it"}
_HEADS = {
    "mlm": (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "clm": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
}


def finetune_lm(settings: LMSettings) -> dict[str, Any]:
    """Train and write to ``settings.output``.

    Returns:
        The log, as written to ``training_log.json``: settings, versions, held-out loss before and after, Trainer's history.
    """
    course.begin(settings)
    model, tokenizer, objective = load_lm(settings.model, settings.objective)
    length = settings.segments or input_length(model, tokenizer, settings.max_length)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm=objective == "mlm", mlm_probability=settings.mask_probability, seed=settings.seed
    )
    size = settings.batch_size
    arguments = training_arguments(
        settings,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        accelerator_config={"dispatch_batches": False},  # every process reads a stream for itself, and keeps its rows
    )
    trainer = (_segment_trainer if settings.segments else _trainer)(model, arguments, settings, tokenizer, collator, length)
    if objective == "mlm":
        average_over_batches(trainer)
    before = trainer.evaluate()["eval_loss"]
    course.train(trainer, settings)
    after = trainer.evaluate()["eval_loss"]
    log = {
        "settings": vars(settings), "objective": objective, "input_length": length, "versions": versions(),
        "held_out_loss": {"before": before, "after": after}, "history": trainer.state.log_history,
    }  # fmt: skip
    return course.finish(trainer, model, tokenizer, settings, log)


def _trainer(model: Any, arguments: Any, settings: LMSettings, tokenizer: Any, collator: Any, length: int) -> TimedTrainer:
    """On inputs of one length, each for itself."""
    train, held_out = (to_inputs(data, tokenizer, length) for data in read_documents(settings))
    return TimedTrainer(
        model, arguments, train_dataset=train, eval_dataset=held_out, data_collator=collator, max_minutes=settings.max_minutes
    )


def _segment_trainer(model: Any, arguments: Any, settings: LMSettings, tokenizer: Any, collator: Any, length: int) -> SegmentTrainer:
    """On documents segment by segment, with a memory."""
    train, held_out = (tokenised(data, tokenizer) for data in read_documents(settings))
    rows, padding = settings.batch_size * arguments.world_size, {"pad_token_id": tokenizer.pad_token_id}
    return SegmentTrainer(
        model,
        arguments,
        train_dataset=SegmentStream(train, length, rows, shuffle=True, seed=settings.seed, passes=None, **padding),
        eval_dataset=SegmentStream(held_out, length, settings.batch_size, **padding),
        data_collator=SegmentCollator(collator if collator.mlm else None),
        max_minutes=settings.max_minutes,
    )


def describe_lm_training(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    settings, loss = log["settings"], log["held_out_loss"]
    steps = max((entry.get("step", 0) for entry in log["history"]), default=0)
    kind = {"mlm": "masked", "clm": "next"}[log["objective"]]
    return (
        f"{steps:,} steps with `scripts/train_lm.py` on {', '.join(settings['text'])}, inputs of {log['input_length']:,} tokens: "
        f"held-out {kind}-token loss {loss['before']:.3f} before, {loss['after']:.3f} after."
    )


def describe_lm_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    loss = log["held_out_loss"]
    return f"held-out loss {loss['before']:.3f} before, {loss['after']:.3f} after"


def load_lm(name: str, objective: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load a model with its language-modelling head in float32, its tokenizer, and say which objective it has.

    Raises:
        CheckpointError: it cannot be loaded, or has no head for the objective.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
        objective = _objective(config, tokenizer, name) if objective == "auto" else objective
        loader, names = _HEADS[objective]
        if config.model_type not in names or (objective == "clm" and _looks_both_ways(config)):
            raise OptionError(
                f"{name!r} ({config.model_type}) does not {_TASKS[objective]}, which {objective} trains; "
                f"choose the objective {'clm' if objective == 'mlm' else 'mlm'}, or auto, which goes by the model's head"
            )
        model = loader.from_pretrained(name, dtype=torch.float32)
    except OptionError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if objective == "mlm" and tokenizer.mask_token is None:
        raise CheckpointError(f"the tokenizer of {name!r} has no mask token, which mlm needs; give it one (tokenizer.add_special_tokens)")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer, objective


def _looks_both_ways(config: Any) -> bool:
    """Whether a model has a head for next tokens, but would see them: an encoder that is not set up as a decoder."""
    both = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    return both and not getattr(config, "is_decoder", False)


def _objective(config: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    architecture = (config.architectures or [""])[0]
    if architecture.endswith(("ForCausalLM", "LMHeadModel")) or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise CheckpointError(f"{name!r} ({config.model_type}) has no language-modelling head")
        return "clm"
    return "mlm" if tokenizer.mask_token is not None else "clm"


def input_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Return the tokens of one input: what is wanted, at most what the model takes.

    Raises:
        OptionError: more is wanted than the model takes.
    """
    longest = min(getattr(model.config, "max_position_embeddings", 1 << 30), tokenizer.model_max_length)
    if wanted is not None and wanted > longest:
        raise OptionError(f"max_length {wanted} is beyond the {longest} tokens that the model takes; convert it to that length first")
    return wanted or longest
