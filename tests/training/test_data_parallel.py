"""Trainer in several real processes takes the steps of one: also mechanisms that learn per call, with lengths that differ by process."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(dist.get_world_size()), "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": "0"}
import hf_longattn
from transformers import TrainingArguments, DataCollatorForSeq2Seq
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from hf_longattn.training.trainer import TimedTrainer

ranks = dist.get_world_size()
torch.manual_seed(0)
shape = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, max_position_embeddings=256)
model = hf_longattn.LongLlamaForCausalLM(hf_longattn.LongLlamaConfig(**shape, long_attention=ATTENTION, use_cache=False))
# 24 examples: accelerate fills a last batch that is short with the first examples
data = [{"input_ids": torch.randint(5, 99, (int(torch.randint(90, 200, (1,))),))} for _ in range(24)]

def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    pad = lambda x, value: torch.nn.functional.pad(x, (0, longest - len(x)), value=value)
    ids = [row["input_ids"] for row in rows]
    return {"input_ids": torch.stack([pad(x, 0) for x in ids]), "labels": torch.stack([pad(x, -100) for x in ids]),
            "attention_mask": torch.stack([pad(torch.ones_like(x), 0) for x in ids])}

usual = dict(
    output_dir="out", per_device_train_batch_size=8 // ranks, num_train_epochs=EPOCHS, logging_steps=1, report_to=[], use_cpu=True,
    save_strategy=SAVE, save_steps=3, disable_tqdm=True, learning_rate=RATE, seed=1, average_tokens_across_devices=True,
    train_sampling_strategy="sequential")
trainer = TimedTrainer(model=model, args=TrainingArguments(**usual), train_dataset=data, data_collator=collate)
trainer.train()
print([[entry["loss"], entry["grad_norm"]] for entry in trainer.state.log_history if "loss" in entry])
"""


ROUTING = {"mechanism": "routing", "num_clusters": 4, "window_per_cluster": 48, "decay": 0.9}


def program(attention: dict[str, object], epochs: int = 2, rate: float = 1e-2, save: str = "no") -> str:
    values = {"ATTENTION": attention, "EPOCHS": epochs, "RATE": rate, "SAVE": save}
    return functools.reduce(lambda text, one: text.replace(one[0], repr(one[1])), values.items(), PROGRAM)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "attention",
    [
        {"mechanism": "window", "window": 32},
        ROUTING,
        {"mechanism": "adaptive_span", "max_span": 64},
        {"mechanism": "recurrent_memory", "segment_length": 64, "num_memory_tokens": 2},
        {"mechanism": "delta"},
    ],
    ids=lambda attention: attention["mechanism"],
)
def test_the_steps_are_those_of_one_process(tmp_path: Path, attention: dict[str, object], ranks: int) -> None:
    # Centroids that part do so slowly; at a high learning rate, rounding alone moves a token to another cluster within 20 steps.
    longer = {"epochs": 10, "rate": 5e-4} if attention is ROUTING else {}
    found = []
    for count in (1, ranks):
        folder = tmp_path / str(count)
        folder.mkdir()
        said = run_ranks(program(attention, **longer), ROOT, folder, count)
        found.append([value for entry in ast.literal_eval(said[0].splitlines()[-1]) for value in entry])
    assert found[1] == pytest.approx(found[0], abs=1e-4)


RESUMED = """
whole = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
centroids = [x.clone() for name, x in model.named_buffers() if "centroids" in name]
torch.manual_seed(5)  # the weights are those of the checkpoint
model = hf_longattn.LongLlamaForCausalLM(model.config)
trainer = TimedTrainer(model=model, args=TrainingArguments(**usual), train_dataset=data, data_collator=collate)
trainer.train(resume_from_checkpoint="out/checkpoint-3")
again = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
assert len(again) == len(whole) == 6 and max(abs(a - b) for a, b in zip(whole, again)) < 1e-6, (whole, again)
for x, (name, y) in zip(centroids, [one for one in model.named_buffers() if "centroids" in one[0]], strict=True):
    assert torch.allclose(x, y, atol=1e-6), name
"""


@pytest.mark.slow
def test_a_run_of_two_processes_resumes(tmp_path: Path) -> None:
    run_ranks(program(ROUTING, save="steps") + RESUMED, ROOT, tmp_path, 2)
