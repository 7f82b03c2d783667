"""What to type after a conversion whose result is not exact."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..costs.counts import layer_mechanisms
from .plan import ConversionPlan

__all__ = ["next_step"]


LANGUAGE_MODELS = ("ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel", "DoubleHeadsModel")


def next_step(plan: ConversionPlan, destination: Path) -> str:
    """The command that trains the result: further on long text where it predicts tokens, by attention transfer where its mechanisms have
    something to learn; on classes or questions where it has a head for those, on questions where it has none."""
    if plan.generic:
        return f"fine-tune hf_longattn.load_generic({str(destination)!r}) with transformers' Trainer"
    head = plan.architecture.source_class
    if plan.source.sentence is not None:
        return f"fine-tune {destination} with sentence-transformers' trainer on texts of up to {plan.new_length} tokens"
    skeleton: Any = plan.architecture.skeleton(plan.config)
    if head.endswith(LANGUAGE_MODELS) and skeleton.get_output_embeddings() is not None:
        learns = any(mechanism.trains for mechanism in layer_mechanisms(plan.attention, plan.shape, plan.new_length))
        script = "distill_attention" if learns else "train_lm"
        return _command(script, destination, f"--text YOUR_TEXTS --max-length {plan.new_length}", "trained")
    if head.endswith("ForConditionalGeneration"):
        return f"fine-tune {destination} with transformers' Seq2SeqTrainer on texts of up to {plan.new_length} tokens"
    if head.endswith("ForSequenceClassification"):
        return _command("train_classification", destination, "--data YOUR_TEXTS", "trained")
    if not plan.shape.causal and (head.endswith("ForQuestionAnswering") or "For" not in head):
        return _command("train_qa", destination, f"--data YOUR_QUESTIONS.json --epochs 2 --max-length {plan.new_length}", "qa")
    return f"fine-tune {destination} with transformers' Trainer on texts of up to {plan.new_length} tokens"


def _command(script: str, model: Path, arguments: str, ending: str) -> str:
    """What to type, with paths as a shell takes them."""
    given, made = shlex.quote(str(model)), shlex.quote(f"{model}-{ending}")
    return f"python scripts/{script}.py --model {given} {arguments} --output {made}"
