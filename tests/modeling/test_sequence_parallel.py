"""A model whose sequence is cut over real processes gives the loss, the logits and the gradients of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_longattn import sequence_parallel
from hf_longattn.errors import BackendError
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import hf_longattn


torch.set_default_dtype(torch.float64)
ranks, wrong = dist.get_world_size(), []
SHAPE = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
NONE = dict(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)
length = 203
L = {"mechanism": "longformer", "window": 32}
CASES = [
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, L, "labels"),
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "hybrid", "window": 16}, "labels"),
    ("LongBertForTokenClassification", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32}, "labels"),
    ("LongBertForQuestionAnswering", {**SHAPE, **NONE, "max_position_embeddings": 256, "sep_token_id": 4},
     {**L, "global_first_segment": True, "separate_global": True}, "spans"),
    ("LongBertForSequenceClassification", {**SHAPE, **NONE, "max_position_embeddings": 256}, L, "class"),
    ("LongRobertaForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256, "pad_token_id": 1}, {"mechanism": "lsg", "block_size": 16,
     "sparse_block_size": 16}, "labels"),
    ("LongGPT2LMHeadModel", dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=256, attn_pdrop=0.0, embd_pdrop=0.0,
     resid_pdrop=0.0), {"mechanism": "window", "window": 32, "num_sinks": 4}, "labels"),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32},
     "labels"),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
     {"mechanism": "delta", "layers": {"0": {"mechanism": "hybrid", "window": 16}}}, "labels"),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
     {"mechanism": "transformer_xl", "segment_length": 24, "memory_length": 40}, "labels"),
]
for name, settings, attention, kind in CASES:
    torch.manual_seed(5)
    Model = getattr(hf_longattn, name)
    model = Model(Model.config_class(**settings, long_attention=attention)).train()
    ids = torch.randint(5, 99, (2, length))
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    ids[mask == 0] = model.config.pad_token_id or 0
    if kind == "spans":
        ids[:, 9] = 4
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "labels":
        classes = model.config.num_labels if "Token" in name else 99
        labels = torch.randint(0, classes, ids.shape).masked_fill((torch.rand(ids.shape) < 0.5) | (mask == 0), -100)
        labels[:, : length // 2] = -100  # some processes have no label
        batch["labels"] = labels
    if kind == "spans":
        batch |= {"start_positions": torch.tensor([150, 20]), "end_positions": torch.tensor([160, 140])}
    if kind == "class":
        batch["labels"] = torch.tensor([1, 0])

    whole = model(**batch)
    if "LMHead" in name or "Causal" in name:  # transformers rounds these logits to float32
        whole.loss = torch.nn.functional.cross_entropy(whole.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    whole.loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with hf_longattn.sequence_parallel(model):
        cut = model(**batch)
        cut.loss.backward()
    start, stop = length * rank // ranks, length * (rank + 1) // ranks
    worst = {"loss": abs(cut.loss.item() - whole.loss.item())}
    seen = mask.bool()
    if kind == "labels":
        worst["logits"] = ((cut.logits - whole.logits[:, start:stop]) * seen[:, start:stop, None]).abs().max().item()
    elif kind == "spans":
        worst["logits"] = ((cut.start_logits - whole.start_logits) * seen).abs().max().item()
    else:
        worst["logits"] = (cut.logits - whole.logits).abs().max().item()
    for n, p in model.named_parameters():
        if n in expected:
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(grad)
            off = (grad / ranks - expected[n]).abs().max().item()
            worst["gradients"] = max(worst.get("gradients", 0), off)
    print(name, attention, worst)
    wrong += [(name, attention, worst)] if not max(worst.values()) < 1e-8 else []
    again = model(**batch)  # the model runs whole again
    assert torch.equal(again[1], whole[1])
assert not wrong, wrong
"""


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_cut_model_equals_the_whole(tmp_path: Path, ranks: int) -> None:
    assert len(run_ranks(PROGRAM, ROOT, tmp_path, ranks)) == ranks


REFUSALS = """
import pytest
import hf_longattn
from hf_longattn import sequence_parallel
from hf_longattn.errors import LongAttentionError

def refused(words, attention, name="LongBertForMaskedLM", **arguments):
    Model = getattr(hf_longattn, name)
    small = dict(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    model = Model(Model.config_class(**small, long_attention=attention))
    ids = torch.randint(5, 99, (1, 50))
    with pytest.raises(LongAttentionError, match=words), sequence_parallel(model):
        model(**{"input_ids": ids, **arguments})

window = {"mechanism": "window", "window": 16}
refused("looks at the whole sequence", {"mechanism": "top_k"})
refused("every process needs at least one", window, input_ids=torch.ones(1, 1, dtype=torch.long))
refused("has no decode cache", window, name="LongLlamaForCausalLM", use_cache=True)
refused("cannot be given attention weights", window, output_attentions=True)
left = torch.ones(1, 50, dtype=torch.long)
left[:, :9] = 0
refused("pad on the right", {"mechanism": "longformer", "window": 16}, attention_mask=left)
refused("pad on the right", {"mechanism": "segmented", "block_size": 8}, attention_mask=left)
refused("is not known to sequence parallelism", window, name="LongBertForNextSentencePrediction")
refused("in segments", {"mechanism": "recurrent_memory"}, name="LongLlamaForCausalLM")
"""


def test_what_cannot_be_cut_is_refused_with_a_sentence(tmp_path: Path) -> None:
    run_ranks(REFUSALS, ROOT, tmp_path, 2)


def test_one_process_is_told_how_to_start_several() -> None:
    with pytest.raises(BackendError, match="accelerate launch"), sequence_parallel(torch.nn.Linear(2, 2)):
        pass
