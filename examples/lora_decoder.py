"""Adapt a decoder to long text by LoRA with peft and transformers' Trainer, and measure its loss by position before
and after.

    pip install '.[peft]'
    longattn convert meta-llama/Llama-2-7b-hf llama-streaming --config streaming-llm
    python examples/lora_decoder.py llama-streaming book.txt held_out.txt llama-adapted --minutes 20

The decoder may be converted or not. OUTPUT gets the merged model, which from_pretrained loads like any other, and
loss_by_position.json.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from hf_longattn.evaluation.token_loss import token_losses


class StopAfter(TrainerCallback):
    """Ends a training after the first step that ends later than this many minutes."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = time.monotonic() > self.end


def loss_by_position(model: Any, texts: list[list[int]]) -> dict[int, float]:
    """Nats per token at positions up to 256, from there to 512, and so on; each text ``(N,)`` is read whole."""
    model.eval()
    losses = torch.stack(
        [token_losses(model, ids.to(model.device), ids, causal=True) for ids in torch.tensor(texts).split(1)]
    )
    ends = [end for end in (256, 512, 1024, 2048, 4096, 8192, 16384) if end < len(texts[0])] + [len(texts[0])]
    return {end: losses[:, start:end].nanmean().item() for start, end in pairwise([0, *ends])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a decoder: a folder or a name on the Hub")
    parser.add_argument("text", type=Path, help="text to train on")
    parser.add_argument("held_out", type=Path, help="text to measure the loss on")
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training (default: %(default)s)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row in training (default: %(default)s)")
    parser.add_argument("--measured", type=int, default=8192, help="tokens of a held-out text (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=4, help="held-out texts (default: %(default)s)")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, trust_remote_code=False)
    first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]  # a sink of most decoders

    def rows(file: Path, length: int) -> list[list[int]]:
        ids, step = (
            tokenizer(file.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)["input_ids"],
            length - len(first),
        )
        return [first + ids[start : start + step] for start in range(0, len(ids) - step + 1, step)]

    held_out, data = rows(args.held_out, args.measured)[: args.texts], rows(args.text, args.length)
    losses = {"before": loss_by_position(model, held_out)}
    updates = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    )
    arguments = TrainingArguments(
        str(args.output),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        num_train_epochs=100,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
    )
    dataset = [{"input_ids": row, "labels": row} for row in data]
    trainer = Trainer(updates, arguments, train_dataset=dataset, callbacks=[StopAfter(args.minutes)])
    trainer.train()
    model = updates.merge_and_unload()
    losses |= {
        "after": loss_by_position(model, held_out),
        "steps": trainer.state.global_step,
        "training": trainer.state.log_history,
    }
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    (args.output / "loss_by_position.json").write_text(json.dumps(losses, indent=1))
    for end, before in losses["before"].items():
        print(
            f"up to {end:>6,}: {before:.3f} before, {losses['after'][end]:.3f} after {trainer.state.global_step} steps"
        )


if __name__ == "__main__":
    main()
