"""The gated delta rule as a mechanism: its options, its gates, its state."""

import pytest
import torch

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import OptionError
from tests.cells import every_cell
from tests.reference.small_models import in_one_pass, in_pieces, long_like, padding, plain_model, singly, tokens


@every_cell("options", [{}, {"gate": False}, {"expand": 2}, {"normalise": False, "gate": False}])
@every_cell("gate_input", ["key", "hidden_states"])
def test_every_option_equals_its_definition_in_pieces_too(options: dict[str, object], gate_input: str) -> None:
    torch.manual_seed(0)
    module = build_mechanism("delta", num_heads=4, head_dim=16, hidden_size=24, gate_input=gate_input, **options).double()
    scale = 0.2 if options.get("normalise") is False else 1.0
    q, k, v = (scale * torch.randn(2, heads, 150, 16, dtype=torch.float64) for heads in (4, 2, 2))
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[0, :20] = False
    hidden = torch.randn(2, 150, 24, dtype=torch.float64)
    given = {"hidden_states": hidden} if gate_input == "hidden_states" else {}
    whole = attend(q, k, v, module, causal=True, padding_mask=mask, **given)
    torch.testing.assert_close(whole, reference_attend(q, k, v, module, causal=True, padding_mask=mask, **given))
    state, outs = None, []
    for begin, end in ((0, 70), (70, 71), (71, 150)):
        at = slice(begin, end)
        part = {name: x[:, at] for name, x in given.items()}
        out, state = module.advance(q[:, :, at], k[:, :, at], v[:, :, at], state, AttentionCall.of(padding_mask=mask[:, at], **part))
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 2), whole)


def test_a_written_value_is_read_back_and_replaced() -> None:
    module = build_mechanism("delta", num_heads=1, head_dim=4, gate=False, gate_input="key")
    key, values = torch.eye(4)[None, None, :1], torch.tensor([[1.0, 2, 3, 4], [5.0, 6, 7, 8]])
    torch.nn.init.constant_(module.rates["beta"].weight, 50.0)
    state = None
    for value in values:
        out, state = module.advance(key, key, value.view(1, 1, 1, 4), state, AttentionCall.of(scaling=1.0))
        torch.testing.assert_close(out.flatten(), value, atol=1e-4, rtol=1e-4)


def test_without_hidden_states_a_sentence_says_what_to_do() -> None:
    x = torch.randn(1, 2, 5, 8)
    with pytest.raises(OptionError, match="choose gate_input='key'"):
        attend(x, x, x, "delta", causal=True)


@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_a_model_hands_its_hidden_states_over_in_steps_as_well(base: str) -> None:
    head = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[base]
    model = long_like(plain_model(base, head), base, {"mechanism": "delta"})
    ids, mask = tokens(2, 90), padding(2, 90, left=True)
    steps = in_pieces(model, None, ids, mask, [(0, 80), *singly(80, 90)])
    assert (steps - in_one_pass(model, ids, mask))[mask.bool()].abs().max() < 1e-4


def test_a_larger_state_costs_more() -> None:
    once, thrice = (build_mechanism("delta", num_heads=2, head_dim=8, hidden_size=16, expand=n).pairs(4096, True) for n in (1, 3))
    assert thrice == 3 * once
