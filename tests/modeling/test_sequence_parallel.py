"""A model whose sequence is sharded across real processes gives the loss, the logits and the gradients of one process."""

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
DEBERTA = {"max_position_embeddings": 256, "relative_attention": True, "position_buckets": 32, "pos_att_type": ["c2p", "p2c"],
           "position_biased_input": False, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0}
EXPERTS = {"num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts_per_tok": 2, "output_router_logits": True,
           "router_aux_loss_coef": 0.5}
length = 203
L = {"mechanism": "longformer", "window": 32}
CASES = [
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, L, "labels"),
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "hybrid", "window": 16}, "labels"),
    ("LongBertForTokenClassification", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32}, "labels"),
    ("LongBertForQuestionAnswering", {**SHAPE, **NONE, "max_position_embeddings": 256, "sep_token_id": 4},
     {**L, "global_first_segment": True, "separate_global": True}, "spans"),
    ("LongBertForSequenceClassification", {**SHAPE, **NONE, "max_position_embeddings": 256}, L, "class"),
    ("LongRobertaForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256, "pad_token_id": 3}, {"mechanism": "lsg", "block_size": 16,
     "sparse_block_size": 16}, "labels"),
    ("LongGPT2LMHeadModel", dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=256, attn_pdrop=0.0, embd_pdrop=0.0,
     resid_pdrop=0.0), {"mechanism": "window", "window": 32, "num_sinks": 4}, "labels"),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32},
     "labels"),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
     {"mechanism": "delta", "layers": {"0": {"mechanism": "hybrid", "window": 16}}}, "labels"),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256}, {"mechanism": "block_top_k",
     "block_size": 16, "num_blocks": 3}, "labels"),
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "bigbird", "block_size": 8}, "labels"),
    ("LongMPNetForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32}, "labels"),
    ("LongMPNetForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "strided", "window": 16}, "labels"),
    *(("LongDebertaV2ForMaskedLM", {**SHAPE, **NONE, **DEBERTA}, mechanism, "labels") for mechanism in (
        {"mechanism": "window", "window": 32}, {"mechanism": "window", "window": 16, "num_sinks": 3}, {"mechanism": "top_k"},
        {"mechanism": "per_head", "heads": "2=window:window=32;1,3=segmented:block_size=24;window:window=16"})),
    ("LongLlamaForCausalLM", {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
     {"mechanism": "transformer_xl", "segment_length": 24, "memory_length": 40}, "labels"),
    ("LongMixtralForCausalLM", {**SHAPE, **EXPERTS, "num_local_experts": 4}, {"mechanism": "window", "window": 32}, "labels"),
    ("LongQwen3MoeForCausalLM", {**SHAPE, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16}, {"mechanism": "window", "window": 32},
     "labels"),
    ("LongOPTForCausalLM", dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, dropout=0.0,
     word_embed_proj_dim=32, max_position_embeddings=256), {"mechanism": "window", "window": 32}, "labels"),  # its head runs OPTDecoder
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
        whole.loss = whole.loss if whole.get("aux_loss") is None else whole.loss + 0.5 * whole.aux_loss
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

BERT = {**SHAPE, **NONE, "max_position_embeddings": 256}
T5 = dict(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, is_encoder_decoder=False)
LLAMA = {**SHAPE, "max_position_embeddings": 30, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
length, W = 50, {"mechanism": "window", "window": 16}
start, stop = length * rank // ranks, length * (rank + 1) // ranks
ids = torch.randint(5, 99, (2, length))
for name, settings, attention, given in (
    ("LongBertModel", BERT, W, {"documents": (torch.arange(length) // 13).expand(2, -1)}),  # positions start anew
    ("LongBertModel", BERT, W, {"position_ids": (torch.arange(length) % 13).expand(2, -1)}),  # which tell documents apart
    ("LongBertModel", BERT, W, {"input_ids": ids[:1], "cu_seq_lens_q": torch.tensor([0, 30, length])}),
    ("LongBertModel", BERT, L, {"documents": torch.zeros_like(ids)}),  # one in each row
    ("LongRobertaModel", {**BERT, "pad_token_id": 1}, W, {"input_ids": ids.masked_fill(torch.arange(length) > 40, 1)}),
    ("LongLlamaModel", LLAMA, W, {}),  # frequencies follow the length
    ("LongAttentionT5EncoderModel", T5, W, {}),
):
    model = getattr(hf_longattn, name)(getattr(hf_longattn, name).config_class(**settings, long_attention=attention)).eval()
    with torch.no_grad():
        whole = model(**{"input_ids": ids, **given})[0]
        with hf_longattn.sequence_parallel(model):
            cut = model(**{"input_ids": ids, **given})[0]
    assert (cut - whole[:, start:stop]).abs().max() < 1e-8, (name, attention, given)

Model = hf_longattn.LongBertModel
model = Model(Model.config_class(**BERT, long_attention=W)).eval()
padded = torch.ones_like(ids)
padded[1, length - 10 :] = 0  # tokens of the last process
with torch.no_grad():
    whole = model(input_ids=ids, attention_mask=padded)[0]
    optimised = model.optimize_for_inference("fp32")  # which packs padded batches where they are whole
    with hf_longattn.sequence_parallel(optimised):
        cut = optimised(input_ids=ids, attention_mask=padded)[0]
assert ((cut - whole[:, start:stop]) * padded[:, start:stop, None]).abs().max() < 1e-8

Model = hf_longattn.LongLlamaForCausalLM
model = Model(Model.config_class(**SHAPE, long_attention={"mechanism": "adaptive_span", "max_span": 20, "span_loss_weight": 0.5}))
batch = {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.tensor(98)}
with torch.no_grad(), hf_longattn.sequence_parallel(model.train()):
    share = model(**batch).loss
dist.all_reduce(share)
assert abs(share - model(**batch).loss) < 1e-5

Model = hf_longattn.LongBertModel
model = Model(Model.config_class(**BERT, long_attention=L)).float().eval()
with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
    whole = model(input_ids=ids)[0]
    with hf_longattn.sequence_parallel(model):
        cut = model(input_ids=ids)[0]
assert (cut - whole[:, start:stop]).abs().max() < 0.05
"""


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_cut_model_equals_the_whole(tmp_path: Path, ranks: int) -> None:
    assert len(run_ranks(PROGRAM, ROOT, tmp_path, ranks)) == ranks


REFUSALS = """
import pytest
import hf_longattn
from hf_longattn import sequence_parallel
from hf_longattn.errors import LongAttentionError

def refused(words, attention, name="LongBertForMaskedLM", settings={}, **arguments):
    Model = getattr(hf_longattn, name)
    small = dict(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48) | settings
    model = Model(Model.config_class(**small, long_attention=attention))
    arguments = {name: value(model) if callable(value) else value for name, value in arguments.items()}
    ids = torch.randint(5, 99, (1, 50))
    with pytest.raises(LongAttentionError, match=words), sequence_parallel(model):
        model(**{"input_ids": ids, **arguments})
    assert not model._forward_pre_hooks and not model.base_model._forward_pre_hooks

window = {"mechanism": "window", "window": 16}
refused("looks at the whole sequence", {"mechanism": "top_k", "relative": "alibi"})
refused("1 heads cannot be divided over 2 processes", {"mechanism": "top_k"}, settings={"num_attention_heads": 1})
refused("every process needs at least one", window, input_ids=torch.ones(1, 1, dtype=torch.long))
refused("has no decode cache", window, name="LongLlamaForCausalLM", use_cache=True)
refused("cannot be given attention weights", window, output_attentions=True)
left = torch.ones(1, 50, dtype=torch.long)
left[:, :9] = 0
refused("pad on the right", {"mechanism": "longformer", "window": 16, "separate_global": True}, attention_mask=left)
refused("pad on the right", {"mechanism": "infini"}, name="LongLlamaForCausalLM", attention_mask=left)
refused("is not known to sequence parallelism", window, name="LongBertForNextSentencePrediction")
convolution = {"relative_attention": True, "conv_kernel_size": 3, "conv_act": "gelu"}
refused("convolves", window, name="LongDebertaV2ForMaskedLM", settings=convolution)
refused("in segments", {"mechanism": "recurrent_memory"}, name="LongLlamaForCausalLM")
refused("logits_to_keep would", window, name="LongLlamaForCausalLM", logits_to_keep=1)
refused("outputs by name", window, name="LongLlamaForCausalLM", labels=torch.ones(1, 50, dtype=torch.long), return_dict=False)
refused("one for each token", window, labels=torch.ones(1, 40, dtype=torch.long))
refused("cannot be given memory", window, name="LongLlamaForCausalLM", memory=lambda model: model.new_memory())
decoder = {"is_decoder": True, "add_cross_attention": True}
refused("cannot be given encoder_hidden_states", window, "LongBertModel", decoder, encoder_hidden_states=torch.ones(1, 50, 32))
refused("share of masked tokens", window, "LongEsmModel", {"pad_token_id": 1, "mask_token_id": 3, "token_dropout": True})
alone = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "is_encoder_decoder": False, "is_decoder": True}
for name in ("Bart", "Pegasus", "BigBirdPegasus", "MBart"):
    refused("takes no position_ids", window, f"Long{name}ForCausalLM", alone)
refused("but this model has 40", window, "LongBertModel", {"max_position_embeddings": 40})

model = hf_longattn.LongBertModel(hf_longattn.LongBertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=4, vocab_size=9))
with sequence_parallel(model):
    with pytest.raises(LongAttentionError, match="split already"), sequence_parallel(model):
        pass
alone = dist.new_group([0])
if rank:
    with pytest.raises(LongAttentionError, match="not in the group"), sequence_parallel(model, alone):
        pass
"""


def test_what_cannot_be_cut_is_refused_with_a_sentence(tmp_path: Path) -> None:
    run_ranks(REFUSALS, ROOT, tmp_path, 2)


def test_one_process_is_told_how_to_start_several() -> None:
    with pytest.raises(BackendError, match="accelerate launch"), sequence_parallel(torch.nn.Linear(2, 2)):
        pass
