"""Conversion from end to end: encoders, decoders, encoder-decoders and models that answer questions."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.training.tasks import task_names
from tests.cases import every_case
from tests.conversion.conftest import CLASSES, LENGTH
from tests.reports import check_of, needing_training, statuses, tensor_counts
from tests.saved import change_json, change_tensors, read_json

Checkpoint = Callable[..., Path]
WINDOW = {"mechanism": "window", "window": 16}


@pytest.mark.thorough
@every_case("name", CLASSES, of=4)
def test_every_head_is_converted_and_verified(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", mechanism="window", window=16, max_length=200)
    found = statuses(report)
    assert found["tensors"] == found["padding changes nothing"] == found["finite at the new length"] == "passed"
    assert found["equal where the mechanism covers the input"] == "passed"
    assert found["equal at the old length with full attention"] == "passed"
    config = read_json(tmp_path / "long")
    assert config["architectures"] == [f"Long{name}"]
    assert config["model_type"].startswith("long_")
    assert config["long_attention"].items() >= WINDOW.items()
    in_full = "exact_length" in config["long_attention"]
    assert found["at the old length"] == ("measured" if in_full else "needs training")
    assert read_json(tmp_path / "long", "conversion_report.json")["verified"]


@every_case("name", ["BertForQuestionAnswering", "LlamaForCausalLM"])
def test_full_attention_needs_training_only_beyond_the_old_length(
    name: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    positions = "rope:none" if name.startswith("Llama") else "auto"
    report = convert_checkpoint(built(name), tmp_path / name / "same", mechanism="full")
    assert not report.needs_training
    assert report.train_command is None
    report = convert_checkpoint(
        built(name), tmp_path / name / "long", mechanism="full", max_length=200, positions=positions
    )
    assert needing_training(report) == ["positions at the new length"]
    assert report.train_command


@every_case(
    ("name", "mechanism", "command"),
    [
        ("BertForMaskedLM", {"mechanism": "hedgehog"}, "longattn train linearise --model {} --data YOUR_TEXTS"),
        ("BertForMaskedLM", WINDOW, "longattn train mlm --model {} --data YOUR_TEXTS"),
        ("GPT2LMHeadModel", WINDOW, "longattn train clm --model {} --data YOUR_TEXTS"),
        ("RobertaForSequenceClassification", WINDOW, "longattn train classify --model {} --data YOUR_TEXTS"),
        ("ElectraForPreTraining", WINDOW, "fine-tune "),
    ],
)
def test_report_names_the_training_of_each_head(
    name: str, mechanism: dict[str, Any], command: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / f"{name}-{mechanism['mechanism']}"
    report = convert_checkpoint(built(name), folder, long_attention=mechanism, max_length=200)
    assert (report.train_command or "").startswith(command.format(folder))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel"])
def test_memory_tokens_need_training_though_one_segment_holds_the_text(
    name: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert_checkpoint(
        built(name), tmp_path / "long", mechanism="recurrent_memory", segment_length=120, max_length=200
    )
    assert report.needs_training
    assert ("train mlm" if name == "BertForMaskedLM" else "train clm") in (report.train_command or "")


@pytest.mark.thorough
def test_training_command_of_a_report_can_be_typed_as_it_stands(built: Callable[[str], Path], tmp_path: Path) -> None:
    place = tmp_path / "mon modèle"
    report = convert_checkpoint(built("BertForMaskedLM"), place, mechanism="window", window=16, max_length=200)
    words = shlex.split(report.train_command or "")
    assert (words[words.index("--model") + 1], words[-1]) == (str(place), f"{place}-trained")
    assert words[:2] == ["longattn", "train"]
    assert words[2] in task_names()


def test_layers_with_different_exact_lengths_read_the_shortest_exactly(built: Callable[[str], Path]) -> None:
    layers = "0=window:window=8,exact_length=12;1=window:window=8,exact_length=20"
    plan = plan_conversion(built("BertForMaskedLM"), mechanism="window", window=8, layers=layers, max_length=100)
    assert plan.short_texts.length == 12


def test_plan_refuses_to_stretch_a_table_that_is_too_short(built: Callable[[str], Path]) -> None:
    with pytest.raises(OptionError, match=f"keep fewer with stretch:{LENGTH - 2}"):
        plan_conversion(built("BertForMaskedLM"), max_length=4 * LENGTH, positions=f"stretch:{LENGTH}")


@pytest.mark.parametrize(
    ("name", "options"),
    [("BertForMaskedLM", {"mechanism": "full"}), ("RobertaForMaskedLM", {"mechanism": "window", "window": 8})],
)
def test_stretched_positions_are_equal_for_short_texts_and_change_longer_ones(
    name: str, options: dict[str, Any], built: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", max_length=200, positions="stretch", **options)
    assert report.needs_training
    equal = check_of(report, "equal where positions are unchanged")
    assert (equal.status, equal.values["length"]) == ("passed", 21)
    assert needing_training(report)
    for name in needing_training(report):
        assert "stretch:20 changes the old positions after the first 21" in check_of(report, name).detail
    assert read_json(tmp_path / "long")["position_extension"] == "stretch:20"


ROTARY = [name for name in CLASSES if FAMILIES[getattr(transformers, name).config_class.model_type].rope]


@pytest.mark.thorough
@every_case("name", ROTARY, of=4)
def test_yarn_is_written_for_every_rotary_family(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    convert_checkpoint(built(name), tmp_path / "long", mechanism="full", max_length=256, positions="rope:yarn")
    model = transformers.AutoModel.from_pretrained(tmp_path / "long")
    kinds = model.config.rope_parameters
    old = transformers.AutoConfig.from_pretrained(built(name)).rope_parameters
    written = kinds.get("full_attention", kinds)
    assert written | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH} == written
    assert (
        written.items()
        >= {key: value for key, value in old.get("full_attention", old).items() if key != "rope_type"}.items()
    )
    # a layer with a window never looks beyond the old length
    assert kinds.get("sliding_attention") == old.get("sliding_attention")
    report = read_json(tmp_path / "long", "conversion_report.json")
    assert "rope:yarn changes the old positions too" in json.dumps(report["checks"])


def test_tied_weights_stay_tied_and_are_stored_once_by_a_conversion(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    convert_checkpoint(built("BertForMaskedLM"), tmp_path / "long", max_length=128, verify=False)
    assert "cls.predictions.decoder.weight" not in load_file(tmp_path / "long" / "model.safetensors")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.thorough
def test_conversion_leaves_out_buffers_of_the_old_length(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("GPT2LMHeadModel")
    buffers = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril(),
        "transformer.position_ids": torch.arange(LENGTH)[None],
    }
    change_tensors(source, lambda tensors: tensors.update(buffers))
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=128)
    assert "transformer.h.0.attn.bias" not in load_file(tmp_path / "long" / "model.safetensors")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "rename"),
    [
        (
            "BertForMaskedLM",
            lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ),
        ),
        ("GPT2LMHeadModel", lambda name: name.removeprefix("transformer.")),
    ],
    ids=["gamma and beta", "no prefix"],
)
def test_conversion_understands_tensor_names_of_old_checkpoints(
    name: str, rename: Callable[[str], str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint(name)
    tensors = load_file(source / "model.safetensors")
    save_file({rename(old): tensor for old, tensor in tensors.items()}, source / "model.safetensors", {"format": "pt"})
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert tensor_counts(report)["extended"] == 1
    assert "equal" in check_of(report, "equal at the old length with full attention").detail


def test_causal_bert_is_planned_and_verified_as_a_decoder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM")
    change_json(source, architectures=["BertLMHeadModel"], is_decoder=True, add_cross_attention=False)
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=16, max_length=200)
    assert report.plan["costs"][0]["cache_bytes"] is not None


def test_rotary_positions_of_esm_cannot_be_scaled(built: Callable[[str], Path], tmp_path: Path) -> None:
    source = built("EsmForTokenClassification")
    with pytest.raises(OptionError, match="has rotary positions that transformers cannot scale"):
        convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=200, positions="rope:yarn")
    report = convert_checkpoint(source, tmp_path / "long", mechanism="full", max_length=200)
    assert report.plan["positions"] == "rope:none"
    assert needing_training(report) == ["positions at the new length"]


def test_converted_esm_predicts_the_contacts_of_its_source(built: Callable[[str], Path], tmp_path: Path) -> None:
    """ESM's contact head reads the attention weights of all layers."""
    convert_checkpoint(
        built("EsmForMaskedLM"), tmp_path / "long", mechanism="window", window=2 * LENGTH, max_length=200, verify=False
    )
    short, long = (
        transformers.AutoModelForMaskedLM.from_pretrained(folder)
        for folder in (built("EsmForMaskedLM"), tmp_path / "long")
    )
    short.set_attn_implementation("eager")
    ids = torch.randint(4, 24, (2, 30))
    ids[:, 0], ids[0, -1], ids[1, 19], ids[1, 20:] = 0, 2, 2, 1
    mask = (ids != 1).long()
    with torch.no_grad():
        assert (short.predict_contacts(ids, mask) - long.predict_contacts(ids, mask)).abs().max() < 1e-5


def test_converted_modernbert_keeps_its_own_attention_by_default(built: Callable[[str], Path], tmp_path: Path) -> None:
    """Its local layers keep their window and the others attend to everything; rotary positions go on."""
    source = built("ModernBertForMaskedLM")
    report = convert_checkpoint(source, tmp_path / "long", max_length=256, positions="rope:none")
    assert needing_training(report) == ["positions at the new length"]
    local = {"mechanism": "window", "window": 10}
    assert report.plan["long_attention"] == {"mechanism": "full", "layers": {"1": local, "2": local}}
    plain = transformers.AutoModelForMaskedLM.from_pretrained(source, max_position_embeddings=256)
    long = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "long")
    ids = torch.randint(5, 1000, (2, 200))
    mask = torch.ones_like(ids)
    mask[1, 150:] = 0
    with torch.no_grad():
        difference = plain(ids, attention_mask=mask).logits - long(ids, attention_mask=mask).logits
    assert difference[mask.bool()].abs().max() < 1e-5


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["MPNetForMaskedLM", "DebertaV2ForTokenClassification"])
def test_bases_with_terms_in_their_scores_get_a_window_by_default(
    name: str, built: Callable[[str], Path], tmp_path: Path
) -> None:
    report = convert_checkpoint(built(name), tmp_path / "long", max_length=128)
    assert report.plan["long_attention"]["mechanism"] == "window"


Built = Callable[[str], Path]
BART, PEGASUS = "BartForConditionalGeneration", "PegasusForConditionalGeneration"
SIDES = ("encoder", "decoder")


def tables(folder: Path) -> dict[str, torch.Tensor]:
    found = load_file(folder / "model.safetensors")
    return {side: found[f"model.{side}.embed_positions.weight"] for side in SIDES}


@pytest.mark.thorough
def test_conversion_extends_the_encoder_and_keeps_the_decoder(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built(BART), tmp_path / "long", **WINDOW, max_length=200)
    old, new = tables(built(BART)), tables(tmp_path / "long")
    assert torch.equal(new["decoder"], old["decoder"])
    assert torch.equal(new["encoder"], torch.cat([old["encoder"][:2], *[old["encoder"][2:]] * 4])[:202])
    config = read_json(tmp_path / "long")
    assert (config["max_position_embeddings"], config["max_decoder_position_embeddings"]) == (200, LENGTH)
    assert report.plan["decoder"] == {
        "long_attention": {"mechanism": "full"},
        "old_length": LENGTH,
        "new_length": LENGTH,
    }
    # the decoder keeps keys and values of the whole text
    assert report.plan["costs"][-1]["cache_bytes"] == 2 * 200 * 2 * 32 * 4
    assert "longattn train seq2seq" in report.train_command
    found = inspect_checkpoint(tmp_path / "long")
    assert (found.max_length, found.shape.causal, len(found.mechanisms)) == (200, False, 2)


@pytest.mark.thorough
def test_conversion_extends_a_decoder_with_its_own_attention(built: Built, tmp_path: Path) -> None:
    own = {"mechanism": "window", "window": 12}
    report = convert_checkpoint(
        built(BART),
        tmp_path / "long",
        mechanism="full",
        max_length=200,
        max_decoder_length=150,
        decoder_long_attention=own,
    )
    assert report.plan["decoder"] == {"long_attention": own, "old_length": LENGTH, "new_length": 150}
    assert [len(table) for table in tables(tmp_path / "long").values()] == [202, 152]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "long")
    assert [layer.self_attn.long_attention.name for layer in model.model.decoder.layers] == ["window"] * 2
    ids = torch.arange(5, 25)[None]
    assert model.generate(ids, max_new_tokens=100, min_new_tokens=100).shape == (1, 101)


@pytest.mark.thorough
def test_decoder_that_reads_the_text_becomes_as_long_as_the_encoder(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built("BartForQuestionAnswering"), tmp_path / "long", **WINDOW, max_length=200)
    assert report.plan["decoder"]["new_length"] == 200
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long")
    with torch.no_grad():
        assert model(torch.arange(5, 205)[None]).start_logits.shape == (1, 200)


def test_decoder_alone_is_converted_and_refuses_settings_of_two_stacks(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built("BartForCausalLM"), tmp_path / "long", **WINDOW, max_length=200)
    assert "decoder" not in report.plan
    config = read_json(tmp_path / "long")
    assert config["max_decoder_position_embeddings"] == 200
    assert not config["is_encoder_decoder"]
    assert inspect_checkpoint(tmp_path / "long").max_length == 200
    for flag in ({"max_decoder_length": 200}, {"decoder_long_attention": WINDOW}):
        with pytest.raises(OptionError, match="is for the decoder of an encoder-decoder, but a BartForCausalLM"):
            plan_conversion(built("BartForCausalLM"), **flag)


@pytest.mark.thorough
def test_pegasus_positions_are_computed_for_the_new_length(built: Built, tmp_path: Path) -> None:
    report = convert_checkpoint(built(PEGASUS), tmp_path / "long", mechanism="full", max_length=200)
    assert report.plan["positions"] == "sinusoidal"
    assert not report.needs_training
    expected = transformers.PegasusModel(
        transformers.PegasusConfig(vocab_size=9, d_model=32, encoder_layers=0, max_position_embeddings=200)
    )
    assert torch.equal(tables(tmp_path / "long")["encoder"], expected.encoder.embed_positions.weight)
    assert torch.equal(tables(tmp_path / "long")["decoder"], tables(built(PEGASUS))["decoder"])
    with pytest.raises(OptionError, match="sinusoidal positions"):
        plan_conversion(built(PEGASUS), max_length=200, positions="tile")


@pytest.mark.thorough
def test_checkpoint_without_computed_position_tables_is_converted(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """As the first ones of Pegasus were stored."""
    source = checkpoint(PEGASUS)
    change_tensors(source, lambda tensors: [tensors.pop(f"model.{side}.embed_positions.weight") for side in SIDES])
    report = convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200)
    assert tensor_counts(report)["extended"] == 0
    assert (report.plan["old_length"], report.plan["new_length"]) == (LENGTH, 200)


@pytest.mark.thorough
def test_tokenizer_and_generation_lengths_of_two_stacks_follow(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint(BART, tokenizer="gpt2")
    (source / "generation_config.json").write_text(json.dumps({"max_length": LENGTH, "num_beams": 2}))
    convert_checkpoint(source, tmp_path / "long", **WINDOW, max_length=200, max_decoder_length=90)
    assert read_json(tmp_path / "long", "generation_config.json")["max_length"] == 90
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "long").model_max_length == 200


def test_conversion_of_two_stacks_refuses_wrong_lengths_layers_and_tables(
    built: Built, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"a maximum decoder length of 10 is too small, give at least 64"):
        plan_conversion(built(BART), max_decoder_length=10)
    with pytest.raises(InputError, match=r"a maximum length of 10 is too small"):
        plan_conversion(built(BART), max_length=10)
    with pytest.raises(OptionError, match="layer 7"):
        plan_conversion(built(BART), decoder_long_attention={**WINDOW, "layers": {7: {"window": 3}}})
    source = checkpoint(BART)
    table = {"model.decoder.embed_positions.weight": torch.zeros(40, 32)}
    change_tensors(source, lambda tensors: tensors.update(table))
    with pytest.raises(CheckpointError, match=r"decoder\.embed_positions\.weight' of .* has the shape"):
        convert_checkpoint(source, tmp_path / "long")


LONGFORMER: dict[str, Any] = {"mechanism": "longformer", "window": 16}


def separator_in(folder: Path) -> int | None:
    return read_json(folder).get("question_separator_id")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["Bert", "Bart", "DistilBert"])
def test_converted_question_answering_head_makes_questions_global(
    name: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint(f"{name}ForQuestionAnswering", tokenizer=name.lower())
    tokenizer = AutoTokenizer.from_pretrained(source)
    convert_checkpoint(source, tmp_path / "long", **LONGFORMER, max_length=200)
    assert separator_in(tmp_path / "long") == tokenizer.sep_token_id
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long").eval()
    for side in ("right", "left"):
        tokenizer.padding_side = side
        encoded = [tokenizer("who built the house", text) for text in ("the keeper " * 40, "the town")]
        before = [
            [int(place < row.sequence_ids(0).index(1)) for place in range(len(row["input_ids"]))] for row in encoded
        ]
        inputs = DataCollatorWithPadding(tokenizer)(encoded)
        length = inputs["input_ids"].shape[1]
        pad = [([0] * (length - len(row)), row) for row in before]
        marks = torch.tensor([row + gap if side == "right" else gap + row for gap, row in pad])
        with torch.no_grad():
            found, marked = model(**inputs), model(**inputs, global_attention_mask=marks)
        assert torch.equal(found.start_logits, marked.start_logits)


@pytest.mark.thorough
@pytest.mark.parametrize("saved", ["with modules", "sentence_transformers", "sbert_ce_default_activation_function"])
def test_converted_cross_encoder_makes_the_first_text_global(
    saved: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    st = pytest.importorskip("sentence_transformers")
    source = checkpoint("BertForQuestionAnswering", tokenizer="bert")
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(source)
    if saved == "with modules":
        st.CrossEncoder(str(source), device="cpu").save(str(tmp_path / "ranks"))
        source = tmp_path / "ranks"
    else:
        value = {"version": "5.0.0"} if saved == "sentence_transformers" else "torch.nn.modules.linear.Identity"
        change_json(source, **{saved: value})
    convert_checkpoint(source, tmp_path / "long", **LONGFORMER, max_length=200)
    encoder = st.CrossEncoder(str(tmp_path / "long"), device="cpu")
    assert separator_in(tmp_path / "long") == encoder.tokenizer.sep_token_id
    pair = ("who built the house", "the keeper " * 60)
    inputs = encoder.tokenizer(*pair, return_tensors="pt")
    marks = torch.tensor(
        [[int(place < inputs.sequence_ids(0).index(1)) for place in range(inputs["input_ids"].shape[1])]]
    )
    with torch.no_grad():
        network = encoder.transformers_model.eval()
        assert torch.equal(network(**inputs).logits, network(**inputs, global_attention_mask=marks).logits)


@pytest.mark.parametrize(
    ("name", "options"),
    [("BertForQuestionAnswering", {"mechanism": "window", "window": 16}), ("BertForMaskedLM", LONGFORMER)],
)
def test_other_heads_and_mechanisms_get_no_question_separator(
    name: str, options: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    source = checkpoint(name, tokenizer="bert")
    convert_checkpoint(source, tmp_path / "long", **options, max_length=200, verify=False)
    assert separator_in(tmp_path / "long") is None


@pytest.mark.thorough
def test_separator_of_a_global_first_segment_is_that_of_the_tokenizer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = checkpoint("BertForMaskedLM", tokenizer="bert")
    convert_checkpoint(source, tmp_path / "long", **LONGFORMER, global_first_segment=True, max_length=200)
    assert (
        read_json(tmp_path / "long")["long_attention"]["separator_token_id"]
        == AutoTokenizer.from_pretrained(source).sep_token_id
    )
