"""Families with an encoder and a decoder: the encoder long, the decoder and cross-attention full unless chosen, two position tables."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

import hf_longattn.families as families
from hf_longattn.errors import LengthError, MaskError, OptionError, PositionError
from hf_longattn.positions.tables import extend_table, sinusoids

BASES = ("bart", "pegasus", "mbart", "marian")
HEADS = [(base, head) for base in BASES for head in families.FAMILIES[base].heads]
GENERATING = {base: MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES[base] for base in BASES}
ROWS = 96
SHAPE: dict[str, Any] = {
    "vocab_size": 120, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": ROWS, "init_std": 0.2, "dropout": 0.0,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
WINDOW = {"mechanism": "window", "window": 8}
LONGFORMER = {"mechanism": "longformer", "window": 8}
COVERING = {"mechanism": "window", "window": 4096}


def plain_model(base: str, head: str | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    name = head or MODEL_MAPPING_NAMES[base]
    config = transformers.AutoConfig.for_model(base, **{**SHAPE, **changes})
    return getattr(transformers, name)(config).eval()


def long_like(plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
    """The Long model of ``plain``'s class with the same weights."""
    family = families.FAMILIES[base]
    model = family.long_class_of(type(plain))(family.config_class(**{**SHAPE, **changes}, long_attention=long_attention)).eval()
    model.load_state_dict(copy.deepcopy(plain.state_dict()), strict=True)
    return model


def on_the_fly(folder: Path, base: str, **values: Any) -> Any:
    config = families.FAMILIES[base].config_class.from_pretrained(folder, **values)
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, config=config)


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(5, SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def inputs_of(head: str = "", length: int = 40) -> dict[str, Tensor]:
    """Two texts, the second shorter, with one end token each."""
    ids, mask = tokens(2, length), torch.ones(2, length, dtype=torch.long)
    mask[1, length - 11 :] = 0
    ids = torch.where(mask.bool(), ids, SHAPE["pad_token_id"])
    ids[0, -1] = ids[1, length - 12] = SHAPE["eos_token_id"]
    inputs = {"input_ids": ids, "attention_mask": mask}
    whole = head.endswith(("ForCausalLM", "ForSequenceClassification", "ForQuestionAnswering"))  # the decoder reads the text, too
    return inputs if whole else {**inputs, "decoder_input_ids": tokens(2, 9, seed=2)}


@pytest.mark.parametrize(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_every_head_with_full_attention_gives_the_same_bits(base: str, head: str) -> None:
    plain = plain_model(base, head)
    longer = long_like(plain, base, {"mechanism": "full"})
    with torch.no_grad():
        expected, found = plain(**inputs_of(head)), longer(**inputs_of(head))
    compared = [name for name in expected if isinstance(expected[name], Tensor)]
    real = inputs_of()["attention_mask"].bool()
    for name in compared:
        rows = real if expected[name].shape[:2] == real.shape else ...
        assert torch.equal(expected[name][rows], found[name][rows]), name
    assert compared


@pytest.mark.parametrize(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_a_long_class_is_its_base_class(base: str, head: str) -> None:
    made = getattr(families, f"Long{head}")
    assert issubclass(made, getattr(transformers, head))
    assert made.can_generate() == getattr(transformers, head).can_generate()
    assert pickle.loads(pickle.dumps(made)) is made


@pytest.mark.parametrize("base", BASES)
class TestEveryBase:
    def test_a_family_is_one_short_file(self, base: str) -> None:
        assert len(Path(families.__path__[0], f"{base}.py").read_text().splitlines()) <= 30

    def test_where_the_mechanisms_are(self, base: str) -> None:
        model = long_like(plain_model(base), base, {**WINDOW, "layers": {1: {"window": 4}}})
        found = {name: m.long_attention for name, m in model.named_modules() if hasattr(m, "long_attention")}
        assert [found[f"encoder.layers.{i}.self_attn"].options.window for i in range(2)] == [8, 4]
        others = [mechanism.name for name, mechanism in found.items() if name.startswith("decoder")]
        assert others == ["full"] * 4

    def test_the_encoder_runs_its_pattern(self, base: str) -> None:
        """Against transformers' own encoder with the pattern as a mask (B, 1, N, N)."""
        plain, inputs = plain_model(base), inputs_of()
        longer = long_like(plain, base, WINDOW)
        plain.set_attn_implementation("eager")
        near = (torch.arange(40)[:, None] - torch.arange(40)).abs() <= 4
        allowed = near & inputs["attention_mask"].bool()[:, None, None, :]
        allowed |= torch.eye(40, dtype=torch.bool) & ~inputs["attention_mask"].bool()[:, None, :, None]  # padding sees itself, not nothing
        mask = torch.zeros(2, 1, 40, 40).masked_fill(~allowed, torch.finfo(torch.float32).min)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            encoded = plain.encoder(inputs["input_ids"], attention_mask=mask).last_hidden_state
            expected = plain(**inputs, encoder_outputs=(encoded,)).last_hidden_state
            found = longer(**inputs)
        assert (encoded - found.encoder_last_hidden_state)[real].abs().max() < 1e-5
        assert (expected - found.last_hidden_state).abs().max() < 1e-5

    def test_padding_changes_nothing(self, base: str) -> None:
        model, inputs = long_like(plain_model(base), base, LONGFORMER), inputs_of()
        is_global = torch.zeros(2, 40)
        is_global[:, :2] = 1
        with torch.no_grad():
            both = model(**inputs, global_attention_mask=is_global)
            alone = model(
                inputs["input_ids"][1:, :29], decoder_input_ids=inputs["decoder_input_ids"][1:], global_attention_mask=is_global[1:, :29]
            )
        assert (both.last_hidden_state[1:] - alone.last_hidden_state).abs().max() < 1e-5
        assert (both.encoder_last_hidden_state[1:, :29] - alone.encoder_last_hidden_state).abs().max() < 1e-5

    def test_global_tokens_are_the_encoder_s(self, base: str) -> None:
        inputs, plain = inputs_of(), plain_model(base)
        is_global = torch.zeros(2, 40)
        is_global[:, 7] = 1
        model = long_like(plain, base, LONGFORMER, decoder_long_attention=LONGFORMER)
        with torch.no_grad():
            without, given = model(**inputs), model(**inputs, global_attention_mask=is_global)
            through = model(**inputs, encoder_outputs=(without.encoder_last_hidden_state,), global_attention_mask=is_global)
        assert (without.encoder_last_hidden_state - given.encoder_last_hidden_state).abs().max() > 1e-3
        assert torch.equal(without.last_hidden_state, through.last_hidden_state)
        with pytest.raises(MaskError, match="no layer of this model takes global tokens"):
            long_like(plain, base, WINDOW)(**inputs, global_attention_mask=is_global)
        with pytest.raises(MaskError, match=r"global_attention_mask has shape \(2, 39\)"):
            model(**inputs, global_attention_mask=is_global[:, 1:])

    def test_a_long_decoder(self, base: str) -> None:
        plain = plain_model(base)
        narrow = long_like(plain, base, {"mechanism": "full"}, decoder_long_attention={"mechanism": "window", "window": 3})
        ids, targets = tokens(2, 20), tokens(2, 30, seed=3)
        with torch.no_grad():
            before = narrow(ids, decoder_input_ids=targets).last_hidden_state
            assert (before - plain(ids, decoder_input_ids=targets).last_hidden_state).abs().max() > 1e-3
            targets[:, 20:] = 7
            assert torch.equal(narrow(ids, decoder_input_ids=targets).last_hidden_state[:, :20], before[:, :20])
        with pytest.raises(OptionError, match="layer 5"):
            long_like(plain, base, WINDOW, decoder_long_attention={"mechanism": "window", "layers": {5: {"window": 4}}})

    @pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
    @pytest.mark.parametrize("decoder", [None, {"mechanism": "window", "window": 6}], ids=["full decoder", "long decoder"])
    def test_generate(self, base: str, how: dict[str, Any], decoder: Any) -> None:
        """Every token is the most probable one of the whole forward pass; with beams, the same as without a cache."""
        model = long_like(plain_model(base, GENERATING[base]), base, LONGFORMER, decoder_long_attention=decoder)
        inputs = {name: value for name, value in inputs_of().items() if not name.startswith("decoder")}
        inputs["global_attention_mask"] = torch.zeros(2, 40, dtype=torch.long).index_fill(1, torch.tensor([0, 7]), 1)
        arguments = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
        with torch.no_grad():
            written = model.generate(**inputs, **arguments, **how)
            if "num_beams" in how:
                assert torch.equal(written, model.generate(**inputs, **arguments, **how, use_cache=False))
                return
            logits = model(**inputs, decoder_input_ids=written[:, :-1]).logits
        logits[..., SHAPE["eos_token_id"]] = -torch.inf  # min_new_tokens forbids it
        assert torch.equal(logits.argmax(-1), written[:, 1:])

    def test_the_decoder_alone(self, base: str) -> None:
        head = GENERATING[base].replace("ForConditionalGeneration", "ForCausalLM").replace("MTModel", "ForCausalLM")
        model = long_like(plain_model(base, head), base, WINDOW)
        assert model.config.layer_types == ["longattn_window_8"] * 2
        ids = tokens(2, 30)
        with torch.no_grad():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False)
            logits = model(written[:, :-1]).logits
        logits[..., SHAPE["eos_token_id"]] = -torch.inf
        assert torch.equal(logits.argmax(-1)[:, 29:], written[:, 30:])

    def test_a_plain_checkpoint_grows_on_the_encoder_s_side(self, base: str, tmp_path: Path) -> None:
        plain = plain_model(base, GENERATING[base])
        plain.save_pretrained(tmp_path / "short")
        model = on_the_fly(tmp_path / "short", base, max_position_embeddings=400, long_attention=COVERING)
        assert (model.config.max_position_embeddings, model.config.max_decoder_position_embeddings) == (400, ROWS)
        offset = families.FAMILIES[base].position_tables[0].offset
        rows = {side: getattr(model.model, side).embed_positions.weight.shape[0] - offset for side in ("encoder", "decoder")}
        assert rows == {"encoder": 400, "decoder": ROWS}
        inputs = inputs_of()
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            expected, found = plain(**inputs), model(**inputs)
            long = model(tokens(1, 390), decoder_input_ids=tokens(1, 5))
        assert (expected.logits - found.logits).abs().max() < 1e-5
        assert (expected.encoder_last_hidden_state - found.encoder_last_hidden_state)[real].abs().max() < 1e-5
        assert long.logits.isfinite().all()
        model.save_pretrained(tmp_path / "long")
        again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "long")
        assert type(again) is type(model)
        again.save_pretrained(tmp_path / "again")
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()

    def test_a_decoder_of_its_own_length(self, base: str, tmp_path: Path) -> None:
        plain_model(base, GENERATING[base]).save_pretrained(tmp_path)
        model = on_the_fly(tmp_path, base, max_position_embeddings=200, max_decoder_position_embeddings=150, long_attention=COVERING)
        with torch.no_grad():
            assert model(tokens(1, 200), decoder_input_ids=tokens(1, 150)).logits.isfinite().all()
        with pytest.raises(LengthError, match=r"needs 201 positions, but this model has 200.*--max-length 201"):
            model(tokens(1, 201), decoder_input_ids=tokens(1, 5))
        with pytest.raises(LengthError, match=r"needs 151 positions, but this decoder has 150.*--max-decoder-length 151"):
            model(tokens(1, 20), decoder_input_ids=tokens(1, 151))
        with pytest.raises(LengthError, match="this model has 200"):
            model.generate(tokens(1, 201), max_new_tokens=3)

    def test_another_attention_implementation_gives_the_plain_base(self, base: str) -> None:
        plain = plain_model(base)
        longer = long_like(plain, base, WINDOW)
        for implementation in ("sdpa", "eager"):
            for model in (plain, longer):
                model.set_attn_implementation(implementation)
            with torch.no_grad():
                assert torch.equal(plain(**inputs_of()).last_hidden_state, longer(**inputs_of()).last_hidden_state)

    def test_attentions(self, base: str) -> None:
        model = long_like(plain_model(base), base, WINDOW)
        with torch.no_grad():
            out = model(tokens(2, 30), decoder_input_ids=tokens(2, 7), output_attentions=True)
        assert [w.shape for w in out.encoder_attentions] == [(2, 4, 30, 30)] * 2
        assert [w.shape for w in out.decoder_attentions] == [(2, 2, 7, 7)] * 2
        assert [w.shape for w in out.cross_attentions] == [(2, 2, 7, 30)] * 2
        assert out.encoder_attentions[0][0, 0, 29, :20].max() == 0
        assert out.cross_attentions[0].min() > 0

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing(self, base: str, reentrant: bool) -> None:
        gradients = []
        for checkpointing in (False, True):
            model = long_like(plain_model(base, GENERATING[base]), base, LONGFORMER).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            inputs = {name: value for name, value in inputs_of().items() if not name.startswith("decoder")}
            model(**inputs, labels=tokens(2, 9, seed=4), global_attention_mask=torch.eye(2, 40)).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])

    def test_compiled(self, base: str) -> None:
        model = long_like(plain_model(base), base, LONGFORMER)
        inputs = {**inputs_of(), "global_attention_mask": torch.eye(2, 40), "use_cache": False}
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state
            found = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).last_hidden_state
        assert (expected - found).abs().max() < 1e-5

    def test_copied_and_pickled(self, base: str) -> None:
        model = long_like(plain_model(base), base, LONGFORMER)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin.encoder) is type(model.encoder)
            with torch.no_grad():
                assert torch.equal(twin(**inputs_of()).last_hidden_state, model(**inputs_of()).last_hidden_state)

    def test_config(self, base: str, tmp_path: Path) -> None:
        config_class = families.FAMILIES[base].config_class
        config = config_class(**SHAPE, long_attention=WINDOW, decoder_long_attention={"mechanism": "window", "window": 6})
        assert config.max_decoder_position_embeddings == ROWS
        config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["decoder_long_attention"] == {"mechanism": "window", "window": 6}
        for read in (config_class.from_pretrained(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path), copy.deepcopy(config)):
            assert read.to_json_string() == config.to_json_string()
        assert not hasattr(config, "layer_types")  # the encoder's keys are kept in a cache made from the same config


@pytest.mark.parametrize("strategy", ["tile", "interpolate", "random"])
def test_barts_two_special_rows_are_kept_once(strategy: str, tmp_path: Path) -> None:
    plain = plain_model("bart", "BartForConditionalGeneration")
    plain.save_pretrained(tmp_path)
    model = on_the_fly(tmp_path, "bart", max_position_embeddings=300, position_extension=strategy, long_attention=COVERING)
    old, new = plain.model.encoder.embed_positions.weight, model.model.encoder.embed_positions.weight
    assert torch.equal(new, extend_table(old, 302, offset=2, strategy=strategy))
    assert torch.equal(model.model.decoder.embed_positions.weight, plain.model.decoder.embed_positions.weight)
    with pytest.raises(PositionError, match=r"96 positions and the config asks for 50.*max_decoder_position_embeddings=96"):
        on_the_fly(tmp_path, "bart", max_decoder_position_embeddings=50, long_attention=COVERING)


def test_pegasus_positions_are_computed(tmp_path: Path) -> None:
    plain = plain_model("pegasus", "PegasusForConditionalGeneration")
    plain.save_pretrained(tmp_path)
    model = on_the_fly(tmp_path, "pegasus", max_position_embeddings=300, long_attention=COVERING)
    expected = plain_model("pegasus", max_position_embeddings=300).encoder.embed_positions.weight
    assert torch.equal(model.model.encoder.embed_positions.weight, expected)
    assert torch.equal(sinusoids(300, 32), expected)
    assert not model.model.encoder.embed_positions.weight.requires_grad
    with pytest.raises(PositionError, match="differs from the sinusoids"):
        extend_table(torch.randn(10, 32), 20, offset=0, strategy="sinusoidal")
