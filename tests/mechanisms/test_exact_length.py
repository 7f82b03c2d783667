"""The option ``exact_length``: short sequences are attended in full and long ones by the mechanism, whatever else is
in the batch."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn import attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.base import Mechanism, attention_weights
from hf_longattn.mechanisms.common.registry import mechanism_class, prototype
from hf_longattn.modeling.attach.attention_sites import attention_sites
from scripts.dev.tools.small_models import TEXT_FAMILIES, small_config, small_values
from tests.cases import every_case
from tests.grids import ONLY_QUICK, grid
from tests.reference.small_models import long_model
from tests.reports import check_of
from tests.samples import sampled
from tests.shared_code import kind_of_family

SIZES = small_values("bert")

EXACT, LENGTH = 40, 100
LENGTHS = (EXACT, LENGTH, EXACT + 1, 5)
"""Of the sequences of a batch: two are short."""


def served(name: str) -> bool:
    return prototype(name, mechanism_class(name).about.sample).capabilities.recursion is None


NAMES = [name for name in list_mechanisms(causal=False, grid=False) if served(name)]


def built(name: str) -> Mechanism:
    torch.manual_seed(0)
    return sampled(name, 4 * LENGTH, exact_length=EXACT)


def layouts() -> dict[str, tuple[dict[str, Tensor], list[tuple[int, int, int]]]]:
    """The arguments of a batch, and the row, the first token and the one after the last of every sequence."""
    found: dict[str, tuple[dict[str, Tensor], list[tuple[int, int, int]]]] = {}
    for side in ("right", "left"):
        mask = torch.zeros(len(LENGTHS), LENGTH, dtype=torch.bool)
        starts = [LENGTH - length if side == "left" else 0 for length in LENGTHS]
        for row, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
            mask[row, start : start + length] = True
        places = [
            (row, start, start + length) for row, (start, length) in enumerate(zip(starts, LENGTHS, strict=True))
        ]
        found[side] = {"padding_mask": mask}, places
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    documents = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]
    found["packed"] = (
        {"documents": documents},
        [(0, end - length, end) for end, length in zip(ends, LENGTHS, strict=True)],
    )
    return found


@pytest.mark.thorough
@every_case("layout", layouts())
def test_exact_length_gives_short_sequences_full_attention_in_any_batch(layout: str) -> None:
    """The quick tests have each layout with every other mechanism."""
    arguments, places = layouts()[layout]
    rows, length = next(iter(arguments.values())).shape
    failed = []
    for name in NAMES[[*layouts()].index(layout) :: 2] if ONLY_QUICK else NAMES:
        module, plain = built(name), sampled(name, 4 * LENGTH)
        plain.load_state_dict(module.state_dict())
        q, k, v = (torch.randn(rows, heads, length, 16, requires_grad=True) for heads in (4, 2, 2))
        more: dict[str, Tensor] = (
            {"hidden_states": torch.randn(rows, length, 64)} if module.capabilities.takes_hidden_states else {}
        )
        out = attend(q, k, v, module, **arguments, **more)
        reference = reference_attend(q, k, v, module, **arguments, **more)
        gradients = torch.autograd.grad(
            sum(out[row, :, a:b].square().sum() for row, a, b in places), (q, k, v), materialize_grads=True
        )
        for row, first, last in places:
            at = (slice(row, row + 1), slice(None), slice(first, last))
            alone = [x[at].detach().requires_grad_() for x in (q, k, v)]
            own = {} if last - first <= EXACT else {name: x[at[0], at[2]] for name, x in more.items()}
            expected = attend(*alone, "full" if last - first <= EXACT else plain, **own)
            wanted = torch.autograd.grad(expected.square().sum(), alone, materialize_grads=True)
            close = [
                torch.allclose(out[at], expected, atol=1e-6),
                torch.allclose(reference[at].float(), expected, atol=1e-5),
            ]
            close += [torch.allclose(x[at], y, atol=1e-5) for x, y in zip(gradients, wanted, strict=True)]
            failed += [] if all(close) else [f"{name}: {last - first} tokens: {close}"]
    assert not failed, "\n".join(failed)


def test_weights_with_exact_length_are_full_for_short_sequences_only() -> None:
    module, (arguments, places) = built("window"), layouts()["right"]
    q, k = torch.randn(2, len(LENGTHS), 4, LENGTH, 16)
    weights = attention_weights(module, q, k, padding_mask=arguments["padding_mask"])
    for row, _, last in places:
        assert bool((weights[row, :, :last, :last] > 0).all()) == (last <= EXACT)
        torch.testing.assert_close(weights[row, :, :last].sum(-1), torch.ones(4, last))


@every_case(
    ("build", "words"),
    [
        (lambda: build_mechanism("window2d", num_heads=2, head_dim=8, exact_length=8), "reads a grid"),
        (lambda: build_mechanism("recurrent_memory", num_heads=2, head_dim=8, exact_length=8), "memory tokens"),
        (
            lambda: build_mechanism("window", num_heads=2, head_dim=8, exact_length=8, relative="shaw"),
            "relative positions",
        ),
        (
            lambda: build_mechanism("union", num_heads=2, head_dim=8, of="window:exact_length=8+strided"),
            "a member of mechanism 'union' has exact_length=8",
        ),
        (lambda: build_mechanism("window", num_heads=2, head_dim=8, exact_length=-1), "must be at least 0"),
        (
            lambda: attend(*torch.zeros(3, 1, 2, 9, 8), "window", causal=True, exact_length=8),
            "this call is causal; leave it out",
        ),
        (
            lambda: LongAttentionConfig("window", exact_length=8).check_forms(2, causal=True),
            "layer 0 is causal; leave it out",
        ),
    ],
)
def test_exact_length_is_refused_where_it_cannot_be_served(build: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        build()


# ---- models


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("source")
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_a_converted_encoder_reads_short_texts_as_its_source(source: Path, tmp_path: Path) -> None:
    report = convert_checkpoint(source, tmp_path / "long", mechanism="window", window=8, max_length=512)
    check = check_of(report, "equal for short texts")
    assert check.status == "passed"
    assert "at 64 tokens, as for texts of up to 64" in check.detail
    assert report.plan["short_texts"] == "of up to 64 tokens are read exactly as by the source"
    short, long = (
        transformers.AutoModelForMaskedLM.from_pretrained(folder).eval() for folder in (source, tmp_path / "long")
    )
    ids = torch.randint(5, SIZES["vocab_size"], (2, 200))
    with torch.no_grad():
        alone = long(ids[:1]).logits
        for length in (5, 64):
            text = ids[1:, :length]
            expected = short(text).logits
            for side in (slice(0, length), slice(200 - length, 200)):
                batch, mask = ids[:1].repeat(2, 1), torch.ones(2, 200, dtype=torch.long)
                mask[1], mask[1, side], batch[1, side] = 0, 1, text
                found = long(batch, attention_mask=mask).logits
                torch.testing.assert_close(found[1:, side], expected, atol=1e-5, rtol=0)
                torch.testing.assert_close(found[:1], alone, atol=1e-5, rtol=0)
            packed = torch.cat([ids[:1], text], 1)
            documents = torch.tensor([[0] * 200 + [1] * length])
            torch.testing.assert_close(long(packed, documents=documents).logits[:, 200:], expected, atol=1e-5, rtol=0)


@every_case(
    ("settings", "words"),
    [
        ({"exact_length": 65}, "beyond the 64 tokens that the source reads"),
        ({"exact_length": 64, "positions": "interpolate"}, "not read exactly as by the source: interpolate changes"),
        (
            {"exact_length": 64, "layers": {1: {"mechanism": "window", "window": 8}}},
            "some layers have no exact_length",
        ),
    ],
)
def test_a_conversion_plan_says_which_texts_are_read_as_by_the_source(
    settings: dict[str, Any], words: str, source: Path
) -> None:
    try:
        said = str(plan_conversion(source, mechanism="window", window=8, max_length=512, **settings).short_texts)
    except OptionError as error:
        said = str(error)
    assert words in said


READ = {"exact_length": 64}


@every_case(
    ("settings", "attention", "reason"),
    [
        ({"mechanism": "longformer", "window": 8}, {"mechanism": "longformer", "window": 8, **READ}, ""),
        (
            {"mechanism": "window", "window": 8, "exact_length": 0},
            {"mechanism": "window", "window": 8, "exact_length": 0},
            "",
        ),
        # reads no longer texts
        ({"mechanism": "window", "window": 8, "max_length": 64}, {"mechanism": "window", "window": 8}, ""),
        (
            {"mechanism": "window", "window": 8, "positions": "interpolate"},
            {"mechanism": "window", "window": 8},
            "interpolate changes",
        ),
        ({"mechanism": "window", "window": 256}, {"mechanism": "window", "window": 256}, ""),  # covers them
        ({"mechanism": "full"}, {"mechanism": "full"}, ""),
        ({"mechanism": "linear"}, {"mechanism": "linear"}, "'linear' is not full attention over fewer keys"),
        (
            {"mechanism": "synthesizer"},
            {"mechanism": "synthesizer"},
            "'synthesizer' adds parameters that need training",
        ),
        (
            {"mechanism": "window", "relative": "alibi"},
            {"mechanism": "window", "relative": "alibi"},
            "relative=alibi changes",
        ),
        (
            {"mechanism": "window", "window": 8, "layers": {0: {"mechanism": "full"}}},
            {"mechanism": "window", "window": 8, **READ, "layers": {"0": {"mechanism": "full"}}},
            "",
        ),
        (
            {
                "mechanism": "window",
                "window": 8,
                "layers": {0: {"mechanism": "segmented", "block_size": 8}, 1: {"window": 16}},
            },
            {
                **{"mechanism": "window", "window": 8, **READ},
                "layers": {"0": {"mechanism": "segmented", "block_size": 8, **READ}, "1": {"window": 16}},
            },
            "",
        ),
        (
            {"layers": "window:window=8,full"},
            {
                "mechanism": "window",
                **READ,
                "layers": {"in_turn": [{"mechanism": "window", "window": 8, **READ}, {"mechanism": "full"}]},
            },
            "",
        ),
        ({"layers": "window:window=8,linear"}, None, "'linear' is not full attention over fewer keys"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_exact_length_is_by_default_the_sources_length_where_that_is_exact(
    settings: dict[str, Any], attention: dict[str, Any] | None, reason: str, source: Path
) -> None:
    plan = plan_conversion(source, **{"max_length": 512, **settings})
    assert attention is None or plan.attention.to_dict() == attention
    assert plan.config.long_attention == plan.attention
    assert ("exact_length" in json.dumps(plan.attention.to_dict())) == bool(
        plan.short_texts.length or settings.get("exact_length") == 0
    )
    assert plan.short_texts.reason.startswith(reason)
    assert bool(plan.short_texts.reason) == bool(reason)


def test_exact_length_spares_sliding_layers_and_decoders_by_default(tmp_path: Path) -> None:
    marks = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    config = transformers.ModernBertConfig(**SIZES, **marks, local_attention=16, global_attn_every_n_layers=2)
    transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path / "windows")
    plan = plan_conversion(tmp_path / "windows", mechanism="window", window=8, max_length=512)
    [(name, options), *_] = [
        plan.attention.for_layer(layer) for layer, kind in enumerate(config.layer_types) if kind == "full_attention"
    ]
    assert (name, options) == ("window", {"window": 8, **READ})
    [(name, options), *_] = [
        plan.attention.for_layer(layer) for layer, kind in enumerate(config.layer_types) if kind != "full_attention"
    ]
    assert (name, options) == ("window", {"window": 16})
    assert str(plan.short_texts) == "of up to 64 tokens are read exactly as by the source"
    transformers.GPT2LMHeadModel(small_config("gpt2")).save_pretrained(tmp_path / "decoder")
    assert plan_conversion(tmp_path / "decoder", mechanism="window", max_length=512).attention.to_dict() == {
        "mechanism": "window"
    }


def test_refusal_for_a_decoder_beside_an_encoder_names_what_to_type(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "long", mechanism="window", window=8, max_length=512, verify=False)
    pair = (str(tmp_path / "long"), str(tmp_path / "long"))
    build = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained
    with pytest.raises(OptionError) as refused:
        build(*pair)
    advice = re.search(r"from_encoder_decoder_pretrained .* decoder_long_attention=(\{.*?\})", str(refused.value))
    assert advice is not None
    options = ast.literal_eval(advice[1])
    assert options == {"mechanism": "window", "window": 64}
    ids = torch.randint(5, SIZES["vocab_size"], (1, 9))
    for attention in (options, LongAttentionConfig(**options)):
        model = build(*pair, decoder_long_attention=attention)
        assert model.decoder.config.long_attention == LongAttentionConfig(**options)
        assert model.encoder.config.long_attention.for_layer(0)[1]["exact_length"] == 64
        assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


@pytest.mark.thorough
@every_case("base", TEXT_FAMILIES, of=9, code=kind_of_family)
def test_a_long_config_says_whether_its_layers_are_causal(base: str) -> None:
    """The default is decided by the config, before there is a model."""
    model = long_model(base, None, {"mechanism": "window"})
    encoding = [
        site
        for site in attention_sites(model)
        if not site.cross and not (site.decoding and model.config.is_encoder_decoder)
    ]
    layers, causal = model.config.attending
    assert (layers, causal) == (len(encoding), all(site.causal for site in encoding))


@pytest.mark.parametrize(
    ("name", "layout"),
    grid(
        itertools.product(["window", "bigbird", "linear"], ["right", "left"]),
        lambda *cell: cell in (("window", "right"), ("bigbird", "left")),
    ),
)
def test_a_compiled_graph_applies_exact_length_by_row(name: str, layout: str) -> None:
    """No value can be looked at in a graph."""
    module, (arguments, _) = built(name), layouts()[layout]
    q, k, v = torch.randn(3, len(LENGTHS), 4, LENGTH, 16)
    mask = arguments["padding_mask"]
    torch.compiler.reset()
    found = torch.compile(lambda q, k, v, mask: attend(q, k, v, module, padding_mask=mask), backend="eager")(
        q, k, v, mask
    )
    real = mask[:, None, :, None]
    torch.testing.assert_close(found * real, attend(q, k, v, module, padding_mask=mask) * real, atol=1e-5, rtol=0)
