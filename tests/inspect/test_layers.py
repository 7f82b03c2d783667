"""Which path runs, and why others do not: explained for a model."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hf_longattn import attend, build_mechanism, enable_long_attention, explain, list_mechanisms
from hf_longattn.engines.call import AttentionCall, DispatchContext, Pattern
from hf_longattn.engines.cuda import flex_kernel
from hf_longattn.engines.cuda.flex_kernel import NoKernel
from hf_longattn.engines.dispatch import OBSERVERS, PATHS, PathChoice, first_path, observe, try_path
from hf_longattn.errors import BackendError
from hf_longattn.families import LongViTConfig, LongViTModel
from hf_longattn.functional import run_batch
from hf_longattn.inspect.layers import FIRST_CHOICE
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.comparisons import choices_of, paths_of
from tests.reference.small_models import long_like, long_model, padding, plain_model, tokens

CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "short": ("window", {"window": 32}, ["dense-masked"]),
    "covered": ("window", {"window": 4000}, ["dense"]),
    "long": ("window", {"window": 32}, ["cpu-band"]),
    "dropout": ("window", {"window": 32, "dropout_p": 0.1}, ["cpu-band"]),
    "score term": ("window", {"window": 32, "score_mod": lambda score, b, h, i, j: score}, ["plain"]),
    "bias by distance": ("window", {"window": 32, "relative": "alibi"}, ["cpu-band"]),
    "term of query and distance": ("window", {"window": 32, "relative": "shaw"}, ["cpu-distances"]),
    "term of query and distance, dropout": ("window", {"window": 32, "relative": "shaw", "dropout_p": 0.1}, ["plain"]),
    "term of query and distance, sinks": (
        "window",
        {"window": 32, "relative": "shaw", "num_sinks": 1},
        ["cpu-distances"],
    ),
    "tiles": ("bigbird", {"block_size": 16}, ["sparse", "tiles", "cpu-gathered"]),
    "tiles with dropout": ("bigbird", {"block_size": 16, "dropout_p": 0.1}, ["sparse", "tiles", "cpu-gathered"]),
    "chosen blocks": ("block_top_k", {"block_size": 16}, ["sparse", "cpu-blocks"]),
    "chosen blocks with dropout": (
        "block_top_k",
        {"block_size": 16, "dropout_p": 0.1},
        ["sparse", "tiles", "cpu-gathered"],
    ),
    "linear": ("linear", {"causal": True}, ["linear"]),
    "padding": (
        "window",
        {"window": 32, "padding_mask": padding(1, 300, left=True).bool()},
        ["unchanged", "cpu-band"],
    ),
    "padding of tiles": (
        "bigbird",
        {"block_size": 8, "padding_mask": padding(1, 300, left=True).bool()},
        ["split", "sparse", "tiles", "cpu-gathered"],
    ),
    "documents": (
        "window",
        {"window": 32, "documents": torch.arange(300)[None] // 150},
        ["split", *["dense-masked"] * 2],
    ),
}


@every_case("case", CASES)
def test_attend_takes_the_expected_path(case: str) -> None:
    name, arguments, expected = CASES[case]
    x = torch.randn(1, 2, 200 if case == "short" else 300, 16)
    _, found = paths_of(lambda: attend(x, x, x, name, **arguments))
    assert list(dict.fromkeys(found)) == list(dict.fromkeys(expected))


@pytest.mark.thorough
@pytest.mark.parametrize("padded", [False, True])
def test_every_mechanism_names_the_path_that_ran(padded: bool) -> None:
    rows = {"split", "unchanged", "aligned"}
    nameless = []
    q = torch.randn(1, 2, 300, 16)
    for name in list_mechanisms():
        cls = mechanism_class(name)
        arguments: dict[str, Any] = {"grid": (15, 20)} if cls.capabilities.needs_grid else {}
        arguments |= {"padding_mask": torch.arange(300)[None] < 280} if padded else {}
        for causal in (False, True):
            if cls.causal not in ("both", causal):
                continue
            _, paths = paths_of(lambda: attend(q, q, q, name, causal=causal, **arguments, **cls.about.sample))  # noqa: B023
            found = {*paths} - rows
            if not found or "its own" in found:
                nameless.append((name, causal, found))
    assert not nameless


def test_every_kind_of_request_has_a_path_that_takes_all() -> None:
    call = AttentionCall()
    for kind, listed in PATHS.items():
        assert listed[-1][1](DispatchContext("cpu", 2, 2, call)) is None, kind
        assert len({name for name, _ in listed}) == len(listed)


def test_a_kernel_that_the_machine_lacks_is_passed_over() -> None:
    """Listeners are told once, of what ran."""
    context = DispatchContext("cuda", 512, 512, AttentionCall(), features=64)
    out = torch.ones(1)

    def run(lacks: bool) -> torch.Tensor:
        if lacks:
            raise NoKernel("there is none")
        return out

    elsewhere = ("cpu-blocks", "it is for another device")
    for lacks, result, refused in (
        (False, (out, "flex"), (elsewhere,)),
        (True, (None, "tiles"), (elsewhere, ("flex", "there is none"))),
    ):
        found, choices = choices_of(lambda: try_path("blocks", context, {"flex": lambda: run(lacks)}))  # noqa: B023
        assert found == result
        assert choices == [PathChoice(result[1], refused)]


@pytest.mark.parametrize(
    ("head_dim", "dropout", "reason"), [(8, 0.0, "takes heads of 16 numbers or more"), (64, 0.1, "has no dropout")]
)
def test_flex_attention_takes_no_small_heads_and_no_dropout(head_dim: int, dropout: float, reason: str) -> None:
    """Known before a try, also in a user's own graph, which would hold the kernel that refuses."""
    context = DispatchContext(
        "cuda", 512, 512, AttentionCall(dropout=dropout), features=head_dim, pattern=Pattern.window(64, causal=True)
    )
    assert first_path("band", context)[0] == "plain"
    assert reason in str(flex_kernel.why_not(context))


def test_a_model_is_explained_layer_by_layer() -> None:
    model = long_model(
        "bert", None, {"mechanism": "window", "window": 32, "layers": {"1": {"mechanism": "linear"}}}
    ).eval()
    mask = torch.ones(2, 300, dtype=torch.long)
    mask[0, :100] = 0
    found = explain(model, {"input_ids": tokens(2, 300), "attention_mask": mask})
    assert {(one.layer.split(".")[2], one.mechanism) for one in found} == {
        ("0", "window"),
        ("1", "linear"),
        ("2", "window"),
    }
    assert "cpu-band" in [one.path for one in found if one.mechanism == "window"]
    assert {"unchanged", "split"} <= {one.path for one in found}
    table = str(found).splitlines()
    assert table[0].split() == ["layer", "mechanism", "path", "reason"]
    assert any("cpu-band" in line and "no dense: the band leaves keys out" in line for line in table)


def test_explain_names_the_decode_cache() -> None:
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", {"mechanism": "linear"}).eval()
    assert "cache of a state" in [one.path for one in explain(model, tokens(1, 30))]


def test_paths_of_two_threads_are_recorded_apart() -> None:
    x = torch.randn(1, 2, 300, 16)
    both = threading.Barrier(2, timeout=60)

    def record(name: str) -> set[str]:
        found: set[str] = set()
        with observe(lambda mechanism, choice: found.add(mechanism.name)):
            for _ in range(20):
                both.wait()
                attend(x, x, x, name, causal=True)
        return found

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(record, ("window", "linear"))) == [{"window"}, {"linear"}]
    assert not OBSERVERS


def test_a_graph_compiles_while_paths_are_recorded() -> None:
    x = torch.randn(1, 2, 300, 16)
    module = build_mechanism("window", num_heads=2, head_dim=16, window=32)
    compiled = torch.compile(run_batch, backend="eager", fullgraph=True)
    with observe(lambda mechanism, choice: None):
        torch.testing.assert_close(compiled(module, x, x, x, AttentionCall()), attend(x, x, x, module))


def test_explain_refuses_a_model_without_mechanisms() -> None:
    with pytest.raises(BackendError, match=r'No attention of hf_longattn ran in .* attn_implementation="longattn"'):
        explain(plain_model("bert", "BertModel"), tokens(1, 8))


def test_explain_names_what_a_stock_model_runs() -> None:
    model = enable_long_attention(plain_model("bert"))
    (whole,) = explain(model, tokens(2, 100))
    assert (whole.path, whole.reason) == ("dense", FIRST_CHOICE)
    (row,) = explain(model, {"input_ids": tokens(2, 100), "attention_mask": padding(2, 100)})
    assert (row.path, row.reason) == ("dense-masked", "no dense: keys are padded")
    (capped,) = explain(enable_long_attention(plain_model("gemma2")), tokens(2, 100))
    assert (capped.path, capped.reason) == ("dense-masked", "no dense: scores are changed, or weights are returned")


def test_explain_looks_into_a_model_of_sentence_transformers() -> None:
    model = long_model("bert", None, {"mechanism": "window", "window": 32})
    encoder = torch.nn.Sequential(model)
    encoder.transformers_model = model
    assert explain(encoder, tokens(1, 300)) == explain(model, tokens(1, 300))


def test_explain_gives_a_model_of_images_its_pixels() -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 64,
        "patch_size": 4,
    }
    model = LongViTModel(LongViTConfig(**sizes, long_attention={"mechanism": "window2d", "window": 4})).eval()
    pixels = torch.randn(1, 3, 64, 64)
    answers = explain(model, pixels)
    assert explain(model, {"pixel_values": pixels}) == answers
    assert {(answer.mechanism, answer.path) for answer in answers} == {("window2d", "windows")}
