"""Compressed checkpoints: read again, compared, measured; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
)

from hf_longattn import CompressionConfig, compress_checkpoint, convert_checkpoint
from hf_longattn.conversion.running import outputs as run_model
from hf_longattn.errors import CheckpointError, InputError, MissingExtraError, OptionError
from hf_longattn.export import compress, export_checkpoint, export_native
from hf_longattn.export.compress import REPORT, accuracy
from hf_longattn.export.compression_input import CompressionInput
from hf_longattn.families import FAMILIES, LongViTConfig, LongViTModel
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.mechanisms import list_mechanisms
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling import inference as optimize
from hf_longattn.modeling.pruning import heads_of
from scripts.dev.tools.small_models import Shape, small_config
from tests.cases import every_case
from tests.grids import quickly
from tests.reference.small_models import BASES, LANGUAGE_MODELS, TEXT_FAMILIES, long_model, tokens
from tests.trained import REAL_TEXT, tokenizer_of

pytest.importorskip("torchao")
WINDOW = {"mechanism": "window", "window": 16}
QUICK: dict[str, Any] = {"length": 96, "documents": 2}
QUICK_BASES = ("bert", "gpt2", "llama")
HEADS = ("albert", "gemma", "gpt2", "gpt_neox", "modernbert", "olmo2", "phi3")
"""Bases whose heads are not cut out: their projections are fused or shared, a norm spans all heads, or keys and values
have one head."""
WITHOUT_LOSS = ("clip_text_model", "markuplm", "siglip_text_model")
"""Bases that predict no tokens, by whose loss heads are chosen."""
NOT_QUANTISED = {
    "gpt2": r"has no nn\.Linear layers, which torchao quantises",  # Conv1D
    "gte": r"hold 3 layers as one \(attention\.qkv_proj\), and transformers cannot split quantised weights",
    "nomic_bert": r"hold 3 layers as one \(attn\.Wqkv\), and transformers cannot split quantised weights",
}
"""Bases that torchao does not quantise, and why."""
TOGETHER = ("bigbird", "lsh")
"""Mechanisms whose heads differ by their number (patterns or random draws), in BERT."""
Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """saved(base, attention) -> the folder of a language model of the base."""

    def save(base: str = "bert", attention: Any = None, dtype: torch.dtype = torch.float32) -> Path:
        folder = tmp_path / base
        long_model(base, LANGUAGE_MODELS[base], attention or WINDOW).to(dtype).save_pretrained(folder)
        return folder

    return save


def outputs(folder: Path, ids: Tensor | None = None) -> Tensor:
    model = AutoModelForMaskedLM.from_pretrained(folder)
    with torch.no_grad():
        return model(tokens(1, 60) if ids is None else ids)[0]


QUICK_MECHANISMS = ("adaptive_span", "linformer", "longformer", "recurrent_memory", "window")
"""Without parameters, with parameters by heads (also of grouped keys) and others, and with memory tokens."""


@pytest.mark.thorough
@pytest.mark.parametrize("name", quickly(list_mechanisms(grid=False), QUICK_MECHANISMS))
def test_every_mechanism_is_compressed_to_int8_bf16_and_fewer_heads(name: str, saved: Saved, tmp_path: Path) -> None:
    base = "llama" if mechanism_class(name).causal is True else "bert"
    source = saved(base, {"mechanism": name, **mechanism_class(name).about.sample})
    auto: Any = AutoModelForCausalLM if base == "llama" else AutoModelForMaskedLM
    ids = tokens(1, 60)

    def logits(folder: Path, **arguments: Any) -> Tensor:
        with torch.no_grad():
            return auto.from_pretrained(folder, **arguments).eval()(ids)[0]

    compress_checkpoint(source, tmp_path / "bf16", method="bf16", **QUICK)
    rounded = logits(tmp_path / "bf16", dtype="auto")
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, logits(source, dtype=torch.bfloat16))
    assert compress_checkpoint(source, tmp_path / "int8", method="int8", **QUICK).difference == 0
    mistake = (logits(tmp_path / "int8").float() - logits(source)).norm() / logits(source).norm()
    assert 0 < float(mistake) < (1.0 if optimize.products_overflow() else 0.2)
    if name in TOGETHER:
        with pytest.raises((OptionError, CheckpointError), match=r"no heads can be cut out|so nothing was kept"):
            compress_checkpoint(source, tmp_path / "heads", method="prune-heads", **QUICK)
        assert not (tmp_path / "heads").exists()
    else:
        report = compress_checkpoint(source, tmp_path / "heads", method="prune-heads", **QUICK)
        assert report.difference <= 1e-4
        pruned = logits(tmp_path / "heads")
        torch.testing.assert_close(
            pruned, logits_without(auto.from_pretrained(source).eval(), report.pruned, ids), rtol=1e-4, atol=1e-4
        )
        auto.from_pretrained(tmp_path / "heads").save_pretrained(tmp_path / "once more")
        assert torch.equal(logits(tmp_path / "once more"), pruned)


@pytest.mark.thorough
def test_int8_warns_on_a_processor_whose_products_overflow(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(optimize, "products_overflow", lambda: True)
    monkeypatch.setattr(optimize.logger, "warning", messages.append)
    compress_checkpoint(saved(), tmp_path / "weights", method="int8-weight-only", **QUICK)
    outputs(tmp_path / "bert")
    outputs(tmp_path / "weights")
    assert not messages
    compress_checkpoint(tmp_path / "bert", tmp_path / "int8", method="int8", **QUICK)
    assert set(messages) == {optimize.PRODUCTS_OVERFLOW}
    messages.clear()
    outputs(tmp_path / "int8")
    assert messages == [optimize.PRODUCTS_OVERFLOW]


GROUPED = ("adaptive_span", "hedgehog", "hybrid", "routing", "synthesizer", "taylor")
"""Causal mechanisms with parameters by heads, besides those of
:func:`test_every_mechanism_is_compressed_to_int8_bf16_and_fewer_heads`."""


@pytest.mark.parametrize("name", quickly(GROUPED, ("taylor",)))
def test_pruned_heads_of_grouped_keys_go_with_their_parameters(name: str, saved: Saved, tmp_path: Path) -> None:
    source, ids = saved("llama", {"mechanism": name, **mechanism_class(name).about.sample}), tokens(1, 60)
    report = compress_checkpoint(source, tmp_path / "heads", method="prune-heads", **QUICK)
    without = logits_without(AutoModelForCausalLM.from_pretrained(source).eval(), report.pruned, ids)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "heads").eval()(ids)[0]
    assert any(report.pruned.values())
    torch.testing.assert_close(found, without, rtol=1e-4, atol=1e-4)


def test_pruning_refuses_heads_with_relative_positions_of_their_own(saved: Saved, tmp_path: Path) -> None:
    source = saved("bert", {**WINDOW, "relative": "t5_buckets"})
    with pytest.raises(
        OptionError,
        match=r"relative positions that differ by head, so no heads can be cut out; choose --method int8",
    ):
        compress_checkpoint(source, tmp_path / "heads", method="prune-heads", **QUICK)


@torch.no_grad()
def logits_without(model: Any, pruned: dict[str, list[int]], ids: Tensor) -> Tensor:
    """Of the source, when the outputs of the pruned heads (key-value heads with their queries) are zeros."""
    for heads in heads_of(model):
        width = heads.queries * heads.width
        for head in pruned[str(heads.site.layer)]:
            heads.output.weight[:, head * width : (head + 1) * width] = 0
    return model(ids)[0]


@pytest.mark.parametrize(
    "base", [base if base in QUICK_BASES else pytest.param(base, marks=pytest.mark.slow) for base in BASES]
)
def test_every_family_is_pruned_or_refused(base: str, saved: Saved, tmp_path: Path) -> None:
    source, target = saved(base), tmp_path / "prune-heads"
    if base in (*HEADS, *WITHOUT_LOSS):
        with pytest.raises(
            OptionError, match=r"(can be cut out|cannot be cut out).*; choose |predicts no tokens; .*, or choose "
        ):
            compress_checkpoint(source, target, method="prune-heads", share=0.5, **QUICK)
        return
    assert compress_checkpoint(source, target, method="prune-heads", share=0.5, **QUICK).difference <= 1e-4
    again = AutoModel.from_pretrained(target)
    parameters = sum(one.numel() for one in again.parameters())
    assert parameters < sum(one.numel() for one in AutoModel.from_pretrained(source).parameters())


def test_compression_measures_loss_on_pieces_framed_as_texts() -> None:
    tokenizer = tokenizer_of("bert")
    ids = torch.tensor([tokenizer(REAL_TEXT)["input_ids"]])
    source = CompressionInput(Path(), None, ids, tokenizer, CompressionConfig("bf16", documents=3))
    pieces = source.pieces(16)
    assert [(row[0, 0], row[0, -1]) for row in pieces] == [(tokenizer.cls_token_id, tokenizer.sep_token_id)] * 3
    whole = ids[0].tolist()
    assert all(any(whole[at : at + 14] == row[0, 1:-1].tolist() for at in range(len(whole))) for row in pieces)


@pytest.mark.thorough
def test_pruned_model_can_be_pruned_again_and_trained(saved: Saved, tmp_path: Path) -> None:
    compress_checkpoint(saved(), tmp_path / "once", method="prune-heads", share=0.2, **QUICK)
    compress_checkpoint(tmp_path / "once", tmp_path / "twice", method="prune-heads", share=0.3, **QUICK)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "twice")
    assert sum(model.config.kept_heads.values()) < 12
    assert inspect_checkpoint(tmp_path / "twice").kept_heads == model.config.kept_heads
    ids = tokens(2, 40)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad is not None
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(tmp_path / "again"), outputs(tmp_path / "twice"))


def test_pruning_finds_heads_that_differ_on_long_inputs_only(saved: Saved, tmp_path: Path) -> None:
    """BigBird's random blocks are drawn by head number; an input of 512 tokens is within the blocks that every head
    sees."""
    words = long_model("bert", "BertForMaskedLM", {"mechanism": "bigbird"}, max_position_embeddings=1024)
    with torch.no_grad():
        words.bert.encoder.layer[0].attention.output.dense.weight[:, :16] = (
            0  # the first head goes, and the others get other numbers
        )
    words.save_pretrained(tmp_path / "bigbird")
    with pytest.raises(CheckpointError, match="so nothing was kept"):
        compress_checkpoint(tmp_path / "bigbird", tmp_path / "heads", method="prune-heads", documents=2)
    assert not (tmp_path / "heads").exists()


def test_pruning_takes_out_the_least_important_head(saved: Saved, tmp_path: Path) -> None:
    source = saved()
    model = AutoModelForMaskedLM.from_pretrained(source)
    with torch.no_grad():
        model.bert.encoder.layer[1].attention.output.dense.weight[:, 32:48] = 0  # head 2 of 4
        model.bert.encoder.layer[2].output.dense.weight[:, 7] = 0
    model.save_pretrained(source)
    report = compress_checkpoint(source, tmp_path / "heads", method="prune-heads", share=1 / 12, **QUICK)
    assert report.pruned == {"0": [], "1": [2], "2": []}
    torch.testing.assert_close(outputs(tmp_path / "heads"), outputs(source), rtol=1e-4, atol=1e-4)


def test_compression_keeps_dtype_and_tokenizer_and_measures_a_given_text(saved: Saved, tmp_path: Path) -> None:
    source = saved(dtype=torch.bfloat16)
    words = Tokenizer(models.WordLevel({"[U]": 0, "[M]": 4} | {f"w{n}": n for n in range(5, 200)}, "[U]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[U]", pad_token="[U]", mask_token="[M]"
    ).save_pretrained(source)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{n * 7 % 190 + 5}" for n in range(300)))
    report = compress_checkpoint(source, tmp_path / "small", method="prune-heads", text=text, documents=3)
    assert report.measured["before"]["loss"].keys() == {"300"}
    assert report.text == "text.txt"
    assert json.loads((tmp_path / "small" / REPORT).read_text())["measured"] == report.measured
    assert report.table() in (tmp_path / "small" / "README.md").read_text()
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "small", dtype="auto").dtype == torch.bfloat16
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="--length is 400, but the text has 300 tokens; give a longer text"):
        compress_checkpoint(source, tmp_path / "other", method="bf16", text=text, length=400)


def test_plain_model_is_compressed_but_for_its_heads(tmp_path: Path) -> None:
    BertForMaskedLM(small_config("bert", Shape(tokens=96))).save_pretrained(tmp_path / "bert")
    assert compress_checkpoint(tmp_path / "bert", tmp_path / "int8", method="int8", **QUICK).difference <= 1e-4
    with pytest.raises(OptionError, match="convert it first"):
        compress_checkpoint(tmp_path / "bert", tmp_path / "heads", method="prune-heads", **QUICK)


@pytest.mark.thorough
def test_compression_does_not_count_rows_of_roberta_that_are_no_positions(tmp_path: Path) -> None:
    """RoBERTa's table has two rows more than it reads tokens."""
    RobertaForMaskedLM(small_config("roberta", max_position_embeddings=66)).save_pretrained(tmp_path / "roberta")
    report = compress_checkpoint(tmp_path / "roberta", tmp_path / "bf16", method="bf16", documents=2)
    assert list(report.measured["after"]["loss"]) == ["64"]
    with pytest.raises(InputError, match="--length is 66, but the model takes 64 tokens"):
        compress_checkpoint(tmp_path / "roberta", tmp_path / "other", method="bf16", length=66)


def test_compression_refuses_methods_shares_lengths_and_sources_that_do_not_fit(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = saved(), tmp_path / "small"
    for settings, message in (
        ({"method": "int3"}, "There is no method 'int3'; choose one of int8, .* Did you mean 'int8'?"),
        (
            {"method": "prune-heads", "share": 0.9},
            r"A share of 0.9 of 12 heads would leave a layer without any; give --share 0.75 or less",
        ),
        ({"method": "prune-heads", "share": 0.01}, "rounds to none of 12 heads; give a larger --share"),
        ({"method": "prune-heads", "share": 1.0}, "must be above 0 and below 1"),
        ({"method": "bf16", "documents": 0}, "--documents is 0, but must be from 1 to 1,000"),
    ):
        with pytest.raises(OptionError, match=message):
            compress_checkpoint(source, target, **{**QUICK, **settings})
    with pytest.raises(InputError, match="--length is 4096, but the model takes 512 tokens"):
        compress_checkpoint(source, target, method="bf16", length=4096)
    compress_checkpoint(source, target, method="int8", **QUICK)
    with pytest.raises(
        CheckpointError, match="which can only be loaded; give the checkpoint that it was quantised from"
    ):
        compress_checkpoint(target, tmp_path / "other", method="bf16")
    with pytest.raises(CheckpointError, match="already exists"):
        compress_checkpoint(source, target, method="bf16")
    with pytest.raises(
        CheckpointError, match=r"There is no folder .*; give a checkpoint folder or a Hub repository id"
    ):
        compress_checkpoint(tmp_path / "nowhere", tmp_path / "other", method="bf16")
    long_model("bert", "BertForSequenceClassification", WINDOW).save_pretrained(tmp_path / "classes")
    with pytest.raises(OptionError, match="LongBertForSequenceClassification predicts no tokens"):
        compress_checkpoint(tmp_path / "classes", tmp_path / "other", method="prune-heads", **QUICK)
    assert (
        compress_checkpoint(tmp_path / "classes", tmp_path / "int8", method="int8", **QUICK).measured["after"]["loss"]
        == {}
    )
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(MissingExtraError, match=r"The package 'torchao' .*pip install '\.\[compress\]'"):
        compress_checkpoint(source, tmp_path / "other", method="int8", **QUICK)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kept", [[1], {"0": 0}, {"0": 5}, {"9": 1}, {"x": 1}])
def test_model_refuses_kept_heads_that_it_cannot_have(kept: Any) -> None:
    with pytest.raises(OptionError, match="kept_heads"):
        long_model("bert", None, WINDOW, kept_heads=kept)


def linear_layers(model: Any) -> int:
    """The linear layers of a model that its base model has too; those of its head and output layer are not counted."""
    base = {
        name for name, module in AutoModel.from_config(model.config).named_modules() if isinstance(module, nn.Linear)
    }
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sum(any(path == name or path.endswith(f".{name}") for name in base) for path in paths)


FEW_CELLS = [
    ("bert", None),
    ("bert", "BertForMultipleChoice"),
    ("bart", "BartForConditionalGeneration"),
    ("t5", "T5ForQuestionAnswering"),
]


CELLS = [
    *FEW_CELLS,
    *(
        pytest.param(base, head, marks=pytest.mark.slow)
        for base in TEXT_FAMILIES
        for head in FAMILIES[base].model_classes
        if (base, head) not in FEW_CELLS
    ),
]


@pytest.mark.thorough
@every_case(("base", "head"), CELLS)
def test_int8_covers_the_linear_layers_of_every_base_and_no_head(base: str, head: str | None, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "int8"
    start = {"decoder_start_token_id": 2} if base == "marian" else {}
    model = long_model(base, head, {"mechanism": "full"}, **start)
    model.save_pretrained(source)
    settings: dict[str, Any] = {"method": "int8-weight-only", "length": 32, "documents": 1}
    if base in NOT_QUANTISED:
        with pytest.raises(OptionError, match=NOT_QUANTISED[base]):
            compress_checkpoint(source, target, **settings)
        return
    report = compress_checkpoint(source, target, **settings)
    assert report.difference == 0
    tensors = load_file(target / "model.safetensors")
    quantised = [tensor for name, tensor in tensors.items() if name.endswith("_qdata") and tensor.dtype == torch.int8]
    assert len(quantised) == linear_layers(model)
    assert report.changed == {
        "tensors": len(quantised),
        "bytes": sum(tensor.nbytes for tensor in quantised),
        "all_bytes": sum(tensor.nbytes for tensor in tensors.values()),
    }
    with torch.no_grad():
        expected = outputs_of(model, report)
        loaded = outputs_of(type(model).from_pretrained(target).eval(), report)
    for name, values in expected.items():
        error_norm = float((loaded[name].float() - values).norm() / values.norm())
        assert 0 < error_norm == pytest.approx(report.outputs[name]["relative_error"], rel=1e-3)


def outputs_of(model: Any, report: Any) -> dict[str, Tensor]:
    """What a compression compared: outputs for the first seeded ids."""
    ids = torch.randint(5, model.config.vocab_size, (1, 16384), generator=torch.Generator().manual_seed(0))[
        :, : report.config["length"]
    ]
    return run_model(model, ids, decoder_tokens=16)


@pytest.mark.parametrize("class_name", ["BertModel", "BertForMaskedLM"])
def test_quantised_folder_of_sentence_transformers_encodes_nearly_the_same(class_name: str, tmp_path: Path) -> None:
    """Its folder may name a class with a head, which SentenceTransformer leaves out."""
    st = pytest.importorskip("sentence_transformers")
    long_model("bert", class_name, WINDOW, vocab_size=900).save_pretrained(tmp_path / "bert")
    tokenizer_of("bert", 512).save_pretrained(tmp_path / "bert")
    st.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "source"))
    long_model("bert", class_name, WINDOW, vocab_size=900).save_pretrained(tmp_path / "source")
    report = compress_checkpoint(tmp_path / "source", tmp_path / "int8", method="int8-weight-only", **QUICK)
    assert report.changed["tensors"] == 18 + (class_name == "BertModel")  # the pooler
    texts = REAL_TEXT.splitlines()[:3]
    old, new = (
        st.SentenceTransformer(str(tmp_path / name), device="cpu").encode(texts) for name in ("source", "int8")
    )
    cosines = torch.cosine_similarity(torch.tensor(old), torch.tensor(new).float())
    assert 0.99 < float(cosines.min()) < 1 - 1e-6


def test_compression_that_changes_nothing_is_refused(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(dtype=torch.bfloat16)
    message = (
        r"--method bf16 changes no tensor of this LongBertForMaskedLM, so nothing was kept; choose another --method\."
    )
    with pytest.raises(CheckpointError, match=message):
        compress_checkpoint(source, tmp_path / "bf16", method="bf16", **QUICK)
    monkeypatch.setattr(compress, "heads_of_model", lambda model: [".*"])
    with pytest.raises(CheckpointError, match="--method int8-weight-only changes no tensor"):
        compress_checkpoint(source, tmp_path / "int8", method="int8-weight-only", **QUICK)
    assert {path.name for path in tmp_path.iterdir()} == {"bert"}


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_pruned_heads_are_zeros_in_stock_checkpoints(base: str, saved: Saved, tmp_path: Path) -> None:
    source = saved(base, WINDOW if base == "llama" else {"mechanism": "longformer", "window": 16, "global_tokens": ()})
    compress_checkpoint(source, tmp_path / "heads", method="prune-heads", share=0.5, **QUICK)
    auto: Any = AutoModelForCausalLM if base == "llama" else AutoModelForMaskedLM
    long, ids = auto.from_pretrained(tmp_path / "heads").eval(), tokens(1, 60)
    with torch.no_grad():
        expected = long(ids)[0]
    report = export_native(tmp_path / "heads", tmp_path / "stock")
    assert report.verified
    stock = auto.from_pretrained(tmp_path / "stock").eval()
    assert not hasattr(stock.config, "kept_heads")
    assert stock.num_parameters() > long.num_parameters()
    assert stock.config.model_type == {"bert": "longformer", "llama": "mistral"}[base]
    with torch.no_grad():
        torch.testing.assert_close(stock(ids)[0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="is already a long checkpoint"):
        convert_checkpoint(tmp_path / "heads", tmp_path / "longer", max_length=1024)


def test_quantised_checkpoint_is_refused_by_export_and_convert(saved: Saved, tmp_path: Path) -> None:
    compress_checkpoint(saved("llama"), tmp_path / "int8", method="int8-weight-only", **QUICK)
    message = (
        r"int8' holds quantised weights \(torchao\), which can only be loaded; give the checkpoint that it was "
        r"quantised from\."
    )
    for make in (export_native, export_checkpoint):
        with pytest.raises(CheckpointError, match=message):
            make(tmp_path / "int8", tmp_path / "made")
    with pytest.raises(CheckpointError, match="is already a long checkpoint"):
        convert_checkpoint(tmp_path / "int8", tmp_path / "made", max_length=1024)
    assert not (tmp_path / "made").exists()


def test_compression_and_export_refuse_image_models(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 8,
    }
    LongViTModel(LongViTConfig(**sizes, long_attention={"mechanism": "window2d"})).save_pretrained(tmp_path / "long")
    with pytest.raises(
        OptionError, match=r"reads pixel_values, and a compression is measured on text; load the model with"
    ):
        compress_checkpoint(tmp_path / "long", tmp_path / "small", method="bf16")
    with pytest.raises(
        CheckpointError, match="A graph reads a text, and a LongViTModel reads other inputs; run it in PyTorch"
    ):
        export_checkpoint(tmp_path / "long", tmp_path / "small", format="torch")
    assert not (tmp_path / "small").exists()


def test_accuracy_of_compressed_states_and_scores() -> None:
    states, logits = torch.randn(2, 3, 8), torch.randn(2, 3, 5)
    measured = accuracy(
        {"last_hidden_state": states, "logits": logits}, {"last_hidden_state": -states, "logits": logits}
    )
    assert measured["last_hidden_state"] == pytest.approx(
        {"relative_error": 2, "cosine": -1, "least_cosine": -1}, abs=1e-6
    )
    assert measured["logits"] == {"relative_error": 0, "same_choice": 1}
