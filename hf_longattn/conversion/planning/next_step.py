"""What to type after a conversion whose result is not exact."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..costs.counts import layer_mechanisms
from .plan import ConversionPlan

__all__ = ["next_step"]


LANGUAGE_MODELS = ("ForMaskedLM", "ForPreTraining", "ForCausalLM", "LMHeadModel", "DoubleHeadsModel")


def next_step(plan: ConversionPlan, destination: Path) -> str:
    """The command that trains the result: further on long text where it has a language-modelling head, by attention transfer where its
    mechanisms have something to learn; on classes or questions where it has a head for those, on questions where it has none."""
    if plan.generic:
        return f"fine-tune hf_longattn.load_generic({str(destination)!r}) with transformers' Trainer"
    folder, head = shlex.quote(str(destination)), plan.architecture.source_class
    if head.endswith(LANGUAGE_MODELS):
        learns = any(mechanism.trains for mechanism in layer_mechanisms(plan.attention, plan.shape, plan.new_length))
        script = "distill_attention" if learns else "train_lm"
        return f"python scripts/{script}.py --model {folder} --text YOUR_TEXTS --max-length {plan.new_length} --output {folder}-trained"
    if head.endswith("ForConditionalGeneration"):
        return f"fine-tune {destination} with transformers' Seq2SeqTrainer on texts of up to {plan.new_length} tokens"
    if head.endswith("ForSequenceClassification"):
        return f"python scripts/train_classification.py --model {folder} --data YOUR_TEXTS --output {folder}-trained"
    if not plan.shape.causal and (head.endswith("ForQuestionAnswering") or "For" not in head):
        return f"python scripts/train_qa.py --model {folder} --max-length {plan.new_length} --output {folder}-qa"
    return f"fine-tune {destination} with transformers' Trainer on texts of up to {plan.new_length} tokens"
