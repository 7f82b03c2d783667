"""A model whose sequence is sharded across real processes gives the loss, the logits and the gradients of one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import hf_longattn
from hf_longattn import sequence_parallel
from hf_longattn.errors import BackendError, LongAttentionError
from tests.cells import every_cell
from tests.ranks import PAIR, Ranks
from tests.reference.small_models import in_float64

SHAPE: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NONE = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
DEBERTA: dict[str, Any] = {
    "max_position_embeddings": 256,
    "relative_attention": True,
    "position_buckets": 32,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "type_vocab_size": 0,
}
EXPERTS: dict[str, Any] = {
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.5,
}
LENGTH, SHORT = 203, 50
LONGFORMER = {"mechanism": "longformer", "window": 32}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, LONGFORMER, "labels"),
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "hybrid", "window": 16}, "labels"),
    ("LongBertForTokenClassification", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32}, "labels"),
    (
        "LongBertForQuestionAnswering",
        {**SHAPE, **NONE, "max_position_embeddings": 256, "sep_token_id": 4},
        {**LONGFORMER, "global_first_segment": True, "separate_global": True},
        "spans",
    ),
    ("LongBertForSequenceClassification", {**SHAPE, **NONE, "max_position_embeddings": 256}, LONGFORMER, "class"),
    (
        "LongGPT2LMHeadModel",
        {
            "vocab_size": 99,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        },
        {"mechanism": "window", "window": 32, "num_sinks": 4},
        "labels",
    ),
    (
        "LongLlamaForCausalLM",
        {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
        {"mechanism": "window", "window": 32},
        "labels",
    ),
    (
        "LongLlamaForCausalLM",
        {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
        {"mechanism": "linear", "layers": {"0": {"mechanism": "hybrid", "window": 16}}},
        "labels",
    ),
    (
        "LongLlamaForCausalLM",
        {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
        {"mechanism": "block_top_k", "block_size": 16, "num_blocks": 3},
        "labels",
    ),
    ("LongBertForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "bigbird", "block_size": 8}, "labels"),
    ("LongMPNetForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "window", "window": 32}, "labels"),
    ("LongMPNetForMaskedLM", {**SHAPE, **NONE, "max_position_embeddings": 256}, {"mechanism": "strided", "window": 16}, "labels"),
    *(
        ("LongDebertaV2ForMaskedLM", {**SHAPE, **NONE, **DEBERTA}, mechanism, "labels")
        for mechanism in (
            {"mechanism": "window", "window": 32},
            {"mechanism": "window", "window": 16, "num_sinks": 3},
            {"mechanism": "top_k"},
        )
    ),
    (
        "LongLlamaForCausalLM",
        {**SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 256},
        {"mechanism": "transformer_xl", "segment_length": 24, "memory_length": 40},
        "labels",
    ),
    ("LongMixtralForCausalLM", {**SHAPE, **EXPERTS, "num_local_experts": 4}, {"mechanism": "window", "window": 32}, "labels"),
    (
        "LongQwen3MoeForCausalLM",
        {**SHAPE, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16},
        {"mechanism": "window", "window": 32},
        "labels",
    ),
    (
        "LongOPTForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "dropout": 0.0,
            "word_embed_proj_dim": 32,
            "max_position_embeddings": 256,
        },
        {"mechanism": "window", "window": 32},
        "labels",
    ),  # its head runs OPTDecoder
]

BERT = {**SHAPE, **NONE, "max_position_embeddings": 256}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "is_encoder_decoder": False}
LLAMA = {**SHAPE, "max_position_embeddings": 30, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
WINDOW = {"mechanism": "window", "window": 16}
TOLERANCE = 1e-8


def long_model(name: str, settings: dict[str, Any], attention: dict[str, Any]) -> Any:
    model_class = getattr(hf_longattn, name)
    return model_class(model_class.config_class(**settings, long_attention=attention))


def bounds(length: int) -> slice:
    """The tokens of this process."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return slice(length * rank // ranks, length * (rank + 1) // ranks)


def short_ids() -> Tensor:
    return torch.randint(5, 99, (2, SHORT), generator=torch.Generator().manual_seed(3))


def batch_for(model: Any, name: str, kind: str) -> dict[str, Tensor]:
    ids = torch.randint(5, 99, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    ids[mask == 0] = model.config.pad_token_id or 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "labels":
        classes = model.config.num_labels if "Token" in name else 99
        labels = torch.randint(0, classes, ids.shape).masked_fill((torch.rand(ids.shape) < 0.5) | (mask == 0), -100)
        labels[:, : LENGTH // 2] = -100  # some processes have no label
        batch["labels"] = labels
    if kind == "spans":
        ids[:, 9] = 4
        batch |= {"start_positions": torch.tensor([150, 20]), "end_positions": torch.tensor([160, 140])}
    if kind == "class":
        batch["labels"] = torch.tensor([1, 0])
    return batch


def errors_of_a_head(name: str, settings: dict[str, Any], attention: dict[str, Any], kind: str) -> dict[str, float]:
    """The greatest differences of loss, logits and gradients from those of one process."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    model = in_float64(long_model(name, settings, attention)).train()
    batch = batch_for(model, name, kind)
    expected = model(**batch)
    if "LMHead" in name or "Causal" in name:  # transformers rounds these logits to float32
        expected.loss = F.cross_entropy(expected.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        expected.loss = expected.loss if expected.get("aux_loss") is None else expected.loss + 0.5 * expected.aux_loss
    expected.loss.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    with sequence_parallel(model):
        out = model(**batch)
        out.loss.backward()
    here, real = bounds(LENGTH), batch["attention_mask"].bool()
    if kind == "labels":
        difference = (out.logits - expected.logits[:, here]) * real[:, here, None]
    elif kind == "spans":
        difference = (out.start_logits - expected.start_logits) * real
    else:
        difference = out.logits - expected.logits
    errors = {"loss": abs(out.loss.item() - expected.loss.item()), "logits": difference.abs().max().item(), "gradients": 0.0}
    for key, parameter in model.named_parameters():
        if key in gradients:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            off = (gradient / dist.get_world_size() - gradients[key]).abs().max().item()
            errors["gradients"] = max(errors["gradients"], off)
    assert torch.equal(model(**batch)[1], expected[1]), "the model runs whole again"
    return errors


def error_of_a_base(name: str, settings: dict[str, Any], attention: dict[str, Any], arguments: dict[str, Tensor]) -> float:
    """The greatest difference of the hidden states from those of one process."""
    torch.set_default_dtype(torch.float64)
    model = long_model(name, settings, attention).eval()
    arguments = {"input_ids": short_ids(), **arguments}
    with torch.no_grad():
        expected = model(**arguments)[0]
        with sequence_parallel(model):
            out = model(**arguments)[0]
    return (out - expected[:, bounds(SHORT)]).abs().max().item()


def error_after_optimisation() -> float:
    """A model that packs padded batches in one process."""
    torch.set_default_dtype(torch.float64)
    ids, model = short_ids(), long_model("LongBertModel", BERT, WINDOW).eval()
    padded, here = torch.ones_like(ids), bounds(SHORT)
    padded[1, SHORT - 10 :] = 0  # tokens of the last process
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=padded)[0]
        optimised = model.optimize_for_inference("fp32")
        with sequence_parallel(optimised):
            out = optimised(input_ids=ids, attention_mask=padded)[0]
    return ((out - expected[:, here]) * padded[:, here, None]).abs().max().item()


def error_of_an_auxiliary_loss() -> float:
    torch.set_default_dtype(torch.float64)
    ids, attention = short_ids(), {"mechanism": "adaptive_span", "max_span": 20, "span_loss_weight": 0.5}
    model = long_model("LongLlamaForCausalLM", SHAPE, attention).train()
    batch = {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.tensor(98)}
    with torch.no_grad(), sequence_parallel(model):
        share = model(**batch).loss
    dist.all_reduce(share)
    return abs(share - model(**batch).loss).item()


def error_under_autocast() -> float:
    ids, model = short_ids(), long_model("LongBertModel", BERT, LONGFORMER).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(input_ids=ids)[0]
        with sequence_parallel(model):
            out = model(input_ids=ids)[0]
    return (out - expected[:, bounds(SHORT)]).abs().max().item()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format)
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with contextlib.nullcontext(PAIR) if request.param == PAIR.count else Ranks(request.param) as processes:
        yield processes


@every_cell(("name", "settings", "attention", "kind"), CASES, of=3, ids=[f"{case[0]}-{case[2]['mechanism']}" for case in CASES])
def test_a_sharded_head_equals_one_process(name: str, settings: dict[str, Any], attention: dict[str, Any], kind: str, ranks: Ranks) -> None:
    for errors in ranks.run(errors_of_a_head, name, settings, attention, kind):
        assert max(errors.values()) < TOLERANCE, errors


def boxes_of_a_page() -> Tensor:
    """One for every token: left, top, right and bottom."""
    corners = torch.randint(500, (2, SHORT, 2, 2), generator=torch.Generator().manual_seed(4))
    return torch.cat([corners[:, :, 0], corners.sum(2)], -1)


BASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Tensor]]] = [
    ("LongBertModel", BERT, WINDOW, {"documents": (torch.arange(SHORT) // 13).expand(2, -1)}),  # positions start anew
    ("LongBertModel", BERT, WINDOW, {"position_ids": (torch.arange(SHORT) % 13).expand(2, -1)}),  # which tell documents apart
    ("LongBertModel", BERT, WINDOW, {"input_ids": short_ids()[:1], "cu_seq_lens_q": torch.tensor([0, 30, SHORT])}),
    ("LongBertModel", BERT, LONGFORMER, {"documents": torch.zeros(2, SHORT, dtype=torch.long)}),  # one in each row
    ("LongRobertaModel", {**BERT, "pad_token_id": 1}, WINDOW, {"input_ids": short_ids().masked_fill(torch.arange(SHORT) > 40, 1)}),
    ("LongLlamaModel", LLAMA, WINDOW, {}),  # frequencies follow the length
    ("LongAttentionT5EncoderModel", T5, WINDOW, {}),
    ("LongLayoutLMModel", BERT, WINDOW, {"bbox": boxes_of_a_page()}),  # each goes with its token
]


@pytest.mark.parametrize(("name", "settings", "attention", "arguments"), BASES, ids=[f"{case[0]}-{','.join(case[3])}" for case in BASES])
def test_a_sharded_base_equals_one_process(
    name: str, settings: dict[str, Any], attention: dict[str, Any], arguments: dict[str, Tensor], ranks: Ranks
) -> None:
    assert max(ranks.run(error_of_a_base, name, settings, attention, arguments)) < TOLERANCE


@pytest.mark.parametrize(
    ("error", "tolerance"), [(error_after_optimisation, TOLERANCE), (error_of_an_auxiliary_loss, 1e-5), (error_under_autocast, 0.05)]
)
def test_other_ways_to_run_a_sharded_model(error: Any, tolerance: float, ranks: Ranks) -> None:
    assert max(ranks.run(error)) < tolerance


def assert_refused(
    words: str, attention: dict[str, Any], name: str = "LongBertForMaskedLM", settings: dict[str, Any] | None = None, **arguments: Any
) -> None:
    small = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    model = long_model(name, small | (settings or {}), attention)
    arguments = {key: value(model) if callable(value) else value for key, value in arguments.items()}
    ids = torch.randint(5, 99, (1, 50))
    with pytest.raises(LongAttentionError, match=words), sequence_parallel(model):
        model(**{"input_ids": ids, **arguments})
    assert not model._forward_pre_hooks
    assert not model.base_model._forward_pre_hooks


def refusals() -> None:
    assert_refused("looks at the whole sequence", {"mechanism": "top_k", "relative": "alibi"})
    assert_refused("1 heads cannot be divided over 2 processes", {"mechanism": "top_k"}, settings={"num_attention_heads": 1})
    assert_refused("every process needs at least one", WINDOW, input_ids=torch.ones(1, 1, dtype=torch.long))
    assert_refused("has no decode cache", WINDOW, name="LongLlamaForCausalLM", use_cache=True)
    assert_refused("cannot be given attention weights", WINDOW, output_attentions=True)
    left = torch.ones(1, 50, dtype=torch.long)
    left[:, :9] = 0
    assert_refused("pad on the right", {"mechanism": "longformer", "window": 16, "separate_global": True}, attention_mask=left)
    for padding in (left, left.flip(1)):
        assert_refused("looks at the whole sequence", {"mechanism": "top_k", "relative": "alibi"}, attention_mask=padding)
    assert_refused("is not known to sequence parallelism", WINDOW, name="LongBertForNextSentencePrediction")
    convolution = {"relative_attention": True, "conv_kernel_size": 3, "conv_act": "gelu"}
    assert_refused("convolutions or recurrent layers", WINDOW, name="LongDebertaV2ForMaskedLM", settings=convolution)
    assert_refused("in segments", {"mechanism": "recurrent_memory"}, name="LongLlamaForCausalLM")
    assert_refused("logits_to_keep would", WINDOW, name="LongLlamaForCausalLM", logits_to_keep=1)
    assert_refused("outputs by name", WINDOW, name="LongLlamaForCausalLM", labels=torch.ones(1, 50, dtype=torch.long), return_dict=False)
    assert_refused("one for each token", WINDOW, labels=torch.ones(1, 40, dtype=torch.long))
    assert_refused("cannot be given memory", WINDOW, name="LongLlamaForCausalLM", memory=lambda model: model.new_memory())
    decoder = {"is_decoder": True, "add_cross_attention": True}
    assert_refused("cannot be given encoder_hidden_states", WINDOW, "LongBertModel", decoder, encoder_hidden_states=torch.ones(1, 50, 32))
    assert_refused("share of masked tokens", WINDOW, "LongEsmModel", {"pad_token_id": 1, "mask_token_id": 3, "token_dropout": True})
    alone = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "is_encoder_decoder": False, "is_decoder": True}
    for name in ("Bart", "Pegasus", "BigBirdPegasus", "MBart"):
        assert_refused("takes no position_ids", WINDOW, f"Long{name}ForCausalLM", alone)
    assert_refused("but this model has 40", WINDOW, "LongBertModel", {"max_position_embeddings": 40})
    model = hf_longattn.LongBertModel(hf_longattn.LongBertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=4, vocab_size=9))
    with sequence_parallel(model), pytest.raises(LongAttentionError, match="split already"), sequence_parallel(model):
        pass
    first = dist.new_group([0])
    if dist.get_rank():
        with pytest.raises(LongAttentionError, match="not in the group"), sequence_parallel(model, first):
            pass


def test_what_cannot_be_sharded_is_refused_with_a_sentence() -> None:
    PAIR.run(refusals)


def test_one_process_is_told_how_to_start_several() -> None:
    with pytest.raises(BackendError, match="accelerate launch"), sequence_parallel(torch.nn.Linear(2, 2)):
        pass
