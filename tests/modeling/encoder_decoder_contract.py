"""What holds of every long model with an encoder and a decoder; a subclass says with which small models it is
tested."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn.errors import InputError, OptionError
from tests.reference.small_models import tokens

FULL = {"mechanism": "full"}
WINDOW = {"mechanism": "window", "window": 8}
LONGFORMER = {"mechanism": "longformer", "window": 8}


class EncoderDecoderContract(ABC):
    """Tests of each ``base`` with which a subclass is parametrised.

    answer: the output that a model has for every token of the decoder.
    end: the token that ends a text.
    decoder_layers, decoder_heads: the small models' decoders; their encoders have two layers with four heads.
    """

    answer: str
    end: int
    decoder_layers: int
    decoder_heads: int

    @abstractmethod
    def plain(self, base: str, generates: bool = False, **changes: Any) -> Any:
        """A small model of the base, with the head that generates where it is asked for."""

    @abstractmethod
    def long_like(self, plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
        """The Long model with the same weights."""

    @abstractmethod
    def inputs(self) -> dict[str, Tensor]:
        """Two texts of 40 and 29 tokens, and 9 tokens of each decoder."""

    @abstractmethod
    def equal(self, a: Tensor, b: Tensor) -> None:
        """Assert that two ways to compute the same agree."""

    @abstractmethod
    def unchanged(self, a: Tensor, b: Tensor) -> None:
        """Assert that the same code computed the same from inputs that only differ in what must not matter."""

    def test_the_encoder_equals_the_base_under_the_mask(self, base: str) -> None:
        """Against transformers' own encoder with the pattern as a mask (B, 1, N, N)."""
        plain = self.plain(base)
        inputs = self.inputs()
        longer = self.long_like(plain, base, WINDOW)
        plain.set_attn_implementation("eager")
        near = (torch.arange(40)[:, None] - torch.arange(40)).abs() <= 4
        allowed = near & inputs["attention_mask"].bool()[:, None, None, :]
        # padding sees itself, not nothing
        allowed |= torch.eye(40, dtype=torch.bool) & ~inputs["attention_mask"].bool()[:, None, :, None]
        mask = torch.zeros(2, 1, 40, 40).masked_fill(~allowed, torch.finfo(torch.float32).min)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            encoded = plain.encoder(inputs["input_ids"], attention_mask=mask).last_hidden_state
            expected = plain(**inputs, encoder_outputs=(encoded,))[self.answer]
            found = longer(**inputs)
        self.equal(encoded[real], found.encoder_last_hidden_state[real])
        self.equal(expected, found[self.answer])

    def test_mechanisms_are_in_the_encoder_and_full_attention_elsewhere(self, base: str) -> None:
        model = self.long_like(self.plain(base), base, {**WINDOW, "layers": {1: {"window": 4}}})
        found = {name: m.long_attention for name, m in model.named_modules() if hasattr(m, "long_attention")}
        decoder = [(m.name, m.is_cross_attention) for name, m in found.items() if name.startswith("decoder")]
        assert [m.options.window for name, m in found.items() if name.startswith("encoder")] == [8, 4]
        assert decoder == [("full", False), ("full", True)] * self.decoder_layers

    def test_right_padding_changes_nothing(self, base: str) -> None:
        self.padding_changes_nothing(base, left=False)

    def padding_changes_nothing(self, base: str, left: bool) -> None:
        """Assert that the shorter text is read as it is alone."""
        model = self.long_like(self.plain(base), base, LONGFORMER)
        inputs = self.inputs()
        is_global = torch.zeros(2, 40)
        is_global[:, :2] = 1
        text = inputs["input_ids"][1:, :29]
        decoded = inputs["decoder_input_ids"][1:]
        marks = is_global[1:, :29]
        given = {**inputs, "global_attention_mask": is_global}
        if left:
            given |= {
                name: given[name].roll(11, 1) for name in ("input_ids", "attention_mask", "global_attention_mask")
            }
        with torch.no_grad():
            both = model(**given)
            alone = model(text, decoder_input_ids=decoded, global_attention_mask=marks)
        self.equal(alone[self.answer], both[self.answer][1:])
        encoded = both.encoder_last_hidden_state[1:, 11:] if left else both.encoder_last_hidden_state[1:, :29]
        self.equal(alone.encoder_last_hidden_state, encoded)

    def test_global_tokens_are_those_of_the_encoder(self, base: str) -> None:
        inputs = self.inputs()
        plain = self.plain(base)
        is_global = torch.zeros(2, 40)
        is_global[:, 7] = 1
        model = self.long_like(plain, base, LONGFORMER, decoder_long_attention=LONGFORMER)
        with torch.no_grad():
            without = model(**inputs)
            given = model(**inputs, global_attention_mask=is_global)
            through = model(
                **inputs, encoder_outputs=(without.encoder_last_hidden_state,), global_attention_mask=is_global
            )
        assert (without.encoder_last_hidden_state - given.encoder_last_hidden_state).abs().max() > 1e-3
        assert torch.equal(without[self.answer], through[self.answer])
        with pytest.raises(InputError, match="no layer of this model takes global tokens"):
            self.long_like(plain, base, WINDOW)(**inputs, global_attention_mask=is_global)
        with pytest.raises(InputError, match=r"global_attention_mask has shape \(2, 39\)"):
            model(**inputs, global_attention_mask=is_global[:, 1:])

    def test_a_long_decoder_sees_its_window_alone(self, base: str) -> None:
        plain = self.plain(base)
        narrow = self.long_like(plain, base, FULL, decoder_long_attention={"mechanism": "window", "window": 3})
        ids = tokens(2, 20)
        targets = tokens(2, 30, seed=3)
        with torch.no_grad():
            before = narrow(ids, decoder_input_ids=targets)[self.answer]
            assert (before - plain(ids, decoder_input_ids=targets)[self.answer]).abs().max() > 1e-3
            targets[:, 20:] = 7
            self.unchanged(narrow(ids, decoder_input_ids=targets)[self.answer][:, :20], before[:, :20])
        with pytest.raises(OptionError, match="layer 5"):
            self.long_like(
                plain, base, WINDOW, decoder_long_attention={"mechanism": "window", "layers": {5: {"window": 4}}}
            )

    @pytest.mark.parametrize(
        "how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str
    )
    @pytest.mark.parametrize(
        "decoder", [None, {"mechanism": "window", "window": 6}], ids=["full decoder", "long decoder"]
    )
    def test_generation_equals_the_whole_forward(self, base: str, how: dict[str, Any], decoder: Any) -> None:
        """Every token is the most probable one of the whole forward pass; with beams, the same as without a cache."""
        model = self.long_like(self.plain(base, generates=True), base, LONGFORMER, decoder_long_attention=decoder)
        inputs = {name: value for name, value in self.inputs().items() if not name.startswith("decoder")}
        inputs["global_attention_mask"] = torch.zeros(2, 40, dtype=torch.long).index_fill(1, torch.tensor([0, 7]), 1)
        arguments = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
        with torch.no_grad():
            written = model.generate(**inputs, **arguments, **how)
            if "num_beams" in how:
                assert torch.equal(written, model.generate(**inputs, **arguments, **how, use_cache=False))
                return
            logits = model(**inputs, decoder_input_ids=written[:, :-1]).logits
        logits[..., self.end] = -torch.inf  # min_new_tokens forbids it
        assert torch.equal(logits.argmax(-1), written[:, 1:])

    def test_base_attention_gives_the_plain_base(self, base: str) -> None:
        plain = self.plain(base)
        longer = self.long_like(plain, base, WINDOW)
        for implementation in ("sdpa", "eager"):
            plain.set_attn_implementation(implementation)
            longer.use_base_attention(implementation)
            with torch.no_grad():
                assert torch.equal(plain(**self.inputs())[self.answer], longer(**self.inputs())[self.answer])

    def test_attentions_of_both_stacks_are_returned(self, base: str) -> None:
        model = self.long_like(self.plain(base), base, WINDOW)
        with torch.no_grad():
            out = model(tokens(2, 30), decoder_input_ids=tokens(2, 7), output_attentions=True)
        layers = self.decoder_layers
        heads = self.decoder_heads
        assert [w.shape for w in out.encoder_attentions] == [(2, 4, 30, 30)] * 2
        assert [w.shape for w in out.decoder_attentions] == [(2, heads, 7, 7)] * layers
        assert [w.shape for w in out.cross_attentions] == [(2, heads, 7, 30)] * layers
        assert out.encoder_attentions[0][0, 0, 29, :20].max() == 0
        assert out.cross_attentions[0].min() > 0

    def check_compiled(self, base: str, **one_layer: int) -> None:
        """Called by a test of a base, with the numbers of layers of its model."""
        model = self.long_like(self.plain(base, **one_layer), base, LONGFORMER, **one_layer)
        inputs = {**self.inputs(), "global_attention_mask": torch.eye(2, 40), "use_cache": False}
        torch._dynamo.reset()  # graphs of other tests count towards the limit
        with torch.no_grad():
            expected = model(**inputs)[self.answer]
            self.equal(expected, torch.compile(model, fullgraph=True, backend="eager")(**inputs)[self.answer])
