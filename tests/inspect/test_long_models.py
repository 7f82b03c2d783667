"""Audits of transformers' own long models end in a verdict or in a sentence, and know what their configs say of windows."""

from __future__ import annotations

import warnings

import pytest
import torch

from hf_longattn.errors import LongAttentionError
from hf_longattn.inspect import audit_reach
from hf_longattn.modeling.family.validation import known_length
from tests.cells import every_cell
from tests.inspect.long_models import LONG_MODELS, LONGEST

WINDOWS = {
    "Longformer": [(4, 4), (8, 8)],
    "Longformer, padded": [(18, 18)] * 2,
    "LED": [(4, 4), (8, 8)],
    "LongT5, local": [(7, 7)] * 2,
    "T5Gemma": [(16, 16), (LONGEST - 1, LONGEST - 1)],
    "ModernBERT": [(LONGEST - 1, LONGEST - 1), (6, 6)],
    "ModernBERT, decoder": [(LONGEST - 1, 0), (5, 0)],
    "OpenAI privacy filter": [(16, 16)] * 2,
    "Mistral": [(15, 0)] * 2,
    "Mixtral": [(15, 0)] * 2,
    "Gemma 2": [(15, 0), (LONGEST - 1, 0)],
    "Gemma 3": [(15, 0)] * 2,
    "Gemma 3, bidirectional": [(8, 8)] * 2,
    "Qwen2": [(LONGEST - 1, 0), (15, 0)],
    "Phi-3": [(15, 0)] * 2,
    "Starcoder2": [(15, 0)] * 2,
    "Cohere2": [(15, 0)] * 2,
    "OLMo 3": [(15, 0)] * 2,
    "GPT-OSS": [(15, 0), (LONGEST - 1, 0)],
}
UNKNOWN = {
    "BigBird", "BigBird, full", "BigBirdPegasus", "Nystromformer", "LongT5, transient-global", "PegasusX", "ProphetNet", "FNet",
    "Yoso", "Mra", "Funnel", "XLNet", "DeBERTa-v2", "ConvBERT", "SqueezeBERT", "XLM", "Luke", "Llama 4", "BLOOM", "MPT", "Mamba",
    "Mamba 2", "RecurrentGemma", "RWKV", "Jamba", "LFM2", "Qwen3-Next", "ALBERT",
}  # fmt: skip
"""Models whose attention, or that of some layers, their configs do not determine."""
REFUSED = {
    "Canine": "has no vocab_size, and only models that take token ids are audited",
    "Perceiver": "does not run with 96 tokens as input_ids",
    "Mistral, 0": "The config's sliding_window is 0, but a window has at least 1 token; write a width, or null for full attention",
    "Mistral, -1": "The config's sliding_window is -1, but a window has at least 1 token",
    "Reformer": "when nothing is replaced, and by no more otherwise, so its reach cannot be measured",
    "Reformer, causal": "when nothing is replaced, and by no more otherwise, so its reach cannot be measured",
}


@pytest.mark.thorough
@every_cell("name", LONG_MODELS, of=6, alike=lambda name: (name in REFUSED, name in WINDOWS))
def test_an_audit_ends_in_a_verdict_or_a_sentence(name: str) -> None:
    torch.manual_seed(0)
    model = LONG_MODELS[name]()
    longest = known_length(model.config, None, model)
    length = LONGEST if longest is None or longest > LONGEST else None  # the default, where that is short
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in REFUSED:
            with pytest.raises(LongAttentionError, match=REFUSED[name]) as refused:
                audit_reach(model, length=length)
            assert len(str(refused.value).splitlines()) == 1
            return
        audit = audit_reach(model, length=length)
    assert audit.agrees, audit.to_dict()
    assert bool(audit.note) == (name in UNKNOWN)
    if name in WINDOWS:
        assert [stage.measured for stage in audit.stages[:-1]] == [stage.declared for stage in audit.stages[:-1]] == WINDOWS[name]
