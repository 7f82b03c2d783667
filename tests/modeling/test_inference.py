"""Models made faster for inference: layers in 8 bits, and in pieces."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, ViTModel
from transformers.pytorch_utils import Conv1D

import hf_longattn
from hf_longattn.engines.cpu import onednn
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import BackendError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms import list_mechanisms
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling import inference as optimize
from hf_longattn.modeling.inference import (
    ROWS_PER_PRODUCT,
    Fp16Linear,
    Int8Linear,
    evaluating,
    quantise,
)
from scripts.dev.benchmarks.half_weights import ONLY_AVX2
from scripts.dev.tools.small_models import TEXT_FAMILIES, small_image_config
from tests.cases import every_case
from tests.reference.small_models import CAUSAL, long_model, padding, plain_model, tokens
from tests.samples import sample_of
from tests.shared_code import engine_of_form, kind_of_family
from tests.trained import REAL_TEXT, tokenizer_of

WINDOW = {"mechanism": "window", "window": 16}


def batch(length: int = 100, *, left: bool = False) -> dict[str, Tensor]:
    mask = padding(3, length, left=left)
    return {"input_ids": torch.where(mask.bool(), tokens(3, length), 1), "attention_mask": mask}


def run(model: Any, base: str, **inputs: Any) -> Tensor:
    if FAMILIES[base].two_stacks:
        inputs["decoder_input_ids"] = tokens(len(inputs["input_ids"]), 20)
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@every_case("base", TEXT_FAMILIES, of=24, code=kind_of_family)
def test_an_int8_model_is_the_checkpoint_loaded_in_bf16_with_rounded_linear_layers(base: str, tmp_path: Path) -> None:
    # the usual ones of tests are so large that three layers make much of rounding
    small = {"initializer_range": 0.1, "init_std": 0.1}
    long_model(base, None, WINDOW, **small).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    fast = hf_longattn.optimize_for_inference(AutoModel.from_pretrained(tmp_path, dtype=torch.float32), "int8")
    expected_tensors = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    for name, values in (*fast.named_parameters(), *fast.named_buffers()):
        assert torch.equal(values, expected_tensors[name]), name
    assert len([module for module in fast.base_model.modules() if isinstance(module, Int8Linear)]) >= 6
    inputs = batch(60)
    expected = run(loaded, base, **inputs).float()
    found = run(fast, base, **inputs).float()
    if hasattr(loaded.config, "num_experts_per_tok"):  # rounding sends some tokens to other experts
        real = inputs["attention_mask"].bool()
        assert ((found - expected)[real].norm(dim=-1) / expected[real].norm(dim=-1)).median() < 0.1
    else:
        assert (found - expected).norm() / expected.norm() < 0.1


@every_case("base", TEXT_FAMILIES, of=24, code=kind_of_family)
def test_an_fp16_model_computes_in_fp32_with_rounded_weights(base: str) -> None:
    model = long_model(base, None, WINDOW)
    fast = hf_longattn.optimize_for_inference(copy.deepcopy(model), "fp16")
    assert any(isinstance(module, Fp16Linear) for module in fast.modules())
    assert fast.get_input_embeddings().weight.dtype == torch.float16
    for name, module in model.named_modules():
        if isinstance(fast.get_submodule(name), Fp16Linear) or module is model.get_input_embeddings():
            module.weight.data = module.weight.half().float()
    expected, found = (run(x, base, **batch(60)) for x in (model, fast))
    limit = 1e-3 if "gemma" in base else 1e-5  # Gemma scales its embeddings in their dtype
    assert (found - expected).norm() < limit * expected.norm()


def test_an_fp16_model_has_an_output_layer_of_its_own() -> None:
    model = long_model("llama", "LlamaForCausalLM", WINDOW, tie_word_embeddings=True)
    expected = model(**batch()).logits
    hf_longattn.optimize_for_inference(model, "fp16")
    assert type(model.lm_head) is Fp16Linear
    assert (model(**batch()).logits - expected).norm() < 3e-3 * expected.norm()


AVX2 = """
import torch
from transformers import BertConfig, BertModel
import hf_longattn

model, ids = BertModel(BertConfig(num_hidden_layers=1)).eval(), torch.arange(60)[None]
expected = model(ids)[0]
try:
    hf_longattn.optimize_for_inference(model, "int8")
except Exception as error:
    print(error)
found = hf_longattn.optimize_for_inference(model, "fp16")(ids)[0]
print(torch.backends.cpu.get_cpu_capability(), bool((found - expected).norm() < 1e-3 * expected.norm()))
"""


@pytest.mark.thorough
def test_a_processor_with_avx2_alone_takes_weights_in_fp16() -> None:
    done = subprocess.run(
        [sys.executable, "-c", AVX2], env={**os.environ, **ONLY_AVX2}, capture_output=True, text=True
    )
    assert done.stdout.endswith("choose precision='fp16'.\nAVX2 True\n"), done.stderr


@every_case("name", list_mechanisms(grid=False), of=9, code=engine_of_form)
def test_every_mechanism_runs_in_an_optimised_model(name: str) -> None:
    base = "llama" if mechanism_class(name).causal is True else "bert"
    model = long_model(base, None, sample_of(name))
    inputs = {**batch(150), **({"use_cache": False} if base in CAUSAL else {})}
    with torch.no_grad():
        fast = hf_longattn.optimize_for_inference(model, "int8")
        assert fast(**inputs).last_hidden_state.isfinite().all()


def test_inputs_that_are_not_of_tokens_are_not_cut_into_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-BERT gives its blocks a scale beside the hidden states."""
    monkeypatch.setattr(optimize, "TOKENS_PER_PIECE", 4)
    seen: list[Any] = []

    def whole(x: Tensor, factor: Any) -> Tensor:
        seen.append(x.shape)
        return x * factor

    x = torch.randn(2, 9, 3)
    for factor, calls in ((torch.tensor([2.0]), 1), (2.0, 1), (torch.randn(2, 9, 3), 5), (torch.randn(2, 9, 1), 5)):
        seen.clear()
        assert torch.equal(optimize._in_pieces(whole, x, factor), x * factor)
        assert len(seen) == calls


def test_int8_models_run_their_own_layers_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a copy of the model runs its own blocks."""
    model = long_model("bert", None, WINDOW)
    inputs = batch(100)
    whole = hf_longattn.optimize_for_inference(copy.deepcopy(model), "int8")
    with torch.no_grad():
        expected = whole(**inputs).last_hidden_state
        monkeypatch.setattr(optimize, "TOKENS_PER_PIECE", 48)  # 16 tokens of each of three rows
        copied = copy.deepcopy(whole)
        seen: list[int] = []
        block = copied.encoder.layer[0]
        for layer in (block.attention.output.dense, block.intermediate):
            layer.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
        assert torch.equal(copied(**inputs).last_hidden_state, expected)
        assert seen == ([16] * 6 + [4]) * 2
        assert torch.equal(whole(**inputs).last_hidden_state, expected)
        assert len(seen) == 14


def test_models_without_a_long_class_are_optimised() -> None:
    plain = plain_model("bert", initializer_range=0.02)
    expected = plain(tokens(2, 30)).last_hidden_state
    found = hf_longattn.optimize_for_inference(plain, "int8")(tokens(2, 30)).last_hidden_state
    assert (found - expected).norm() / expected.norm() < 0.05
    vit = ViTModel(small_image_config("vit")).eval()
    hf_longattn.enable_long_attention(vit, WINDOW)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = vit(pixels).last_hidden_state
        found = hf_longattn.optimize_for_inference(copy.deepcopy(vit), "int8")(pixels).last_hidden_state
    assert (found - expected).norm() / expected.norm() < 0.05


def test_hooked_and_tied_layers_and_mechanisms_are_not_optimised() -> None:
    model = long_model("bert", "BertForMaskedLM", {"mechanism": "hedgehog"})
    hooked = model.bert.encoder.layer[0].intermediate.dense
    hooked.register_forward_hook(lambda module, args, out: None)
    fast = hf_longattn.optimize_for_inference(model, "int8")
    assert type(fast.bert.encoder.layer[0].intermediate.dense) is nn.Linear
    assert type(fast.cls.predictions.decoder) is nn.Linear
    assert fast.cls.predictions.decoder.weight is fast.bert.embeddings.word_embeddings.weight
    assert type(fast.cls.predictions.transform.dense) is nn.Linear
    mechanism = fast.bert.encoder.layer[0].attention.self.long_attention
    assert not any(isinstance(module, Int8Linear) for module in mechanism.modules())
    rotary = hf_longattn.optimize_for_inference(long_model("llama", None, WINDOW), "int8")
    assert rotary.rotary_emb.inv_freq.dtype == torch.float32


def test_a_model_with_packed_weights_is_not_saved_or_pickled(tmp_path: Path) -> None:
    model = hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "fp16")
    for save in (lambda: model.save_pretrained(tmp_path), lambda: pickle.dumps(model)):
        with pytest.raises(
            BackendError, match="save the model before, or write a quantised checkpoint with `longattn compress`"
        ):
            save()


def test_a_sentence_transformer_pools_and_normalises_in_float32(tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    long_model("bert", None, WINDOW, vocab_size=900).save_pretrained(tmp_path)
    tokenizer_of("bert", 512).save_pretrained(tmp_path)
    modules = [Transformer(str(tmp_path)), Pooling(64), Dense(64, 32), Normalize()]
    model = st.SentenceTransformer(modules=modules, device="cpu")
    texts = REAL_TEXT.splitlines()[:6]
    expected = model.encode(texts, convert_to_tensor=True)
    assert hf_longattn.optimize_for_inference(model, "int8") is model
    embeddings = model.encode(texts, convert_to_tensor=True)
    assert type(model[0].auto_model.encoder.layer[0].output.dense) is Int8Linear
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(texts)), rtol=0, atol=1e-6)
    assert float((embeddings * expected).sum(-1).min()) > 0.99
    with pytest.raises(BackendError, match="optimised for inference already"):
        hf_longattn.optimize_for_inference(model, "int8")


@torch.no_grad()
def test_an_optimised_model_is_compiled_in_pieces_and_refuses_a_whole_graph() -> None:
    model = hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW, num_hidden_layers=1), "int8")
    found = torch.compile(model, backend="eager")(tokens(1, 40)).last_hidden_state
    assert torch.equal(found, model(tokens(1, 40)).last_hidden_state)
    torch.compiler.reset()
    with pytest.raises(Exception, match="compile without fullgraph=True"):
        torch.compile(model, backend="eager", fullgraph=True)(tokens(1, 40))


@pytest.mark.slow
def test_inductor_compiles_an_optimised_model() -> None:
    model = hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "int8")
    compiled = torch.compile(model)
    with torch.no_grad():
        for length in (40, 100):
            expected = model(tokens(1, length)).last_hidden_state
            difference = (compiled(tokens(1, length)).last_hidden_state - expected).float().norm()
            assert difference < 0.05 * expected.float().norm(), "Inductor rounds less often"


def test_exporting_an_optimised_model_is_refused() -> None:
    model = hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "int8")
    with pytest.raises(BackendError, match="cannot be exported, since its weights are packed; export it before"):
        torch.export.export(model, (tokens(1, 40),), strict=False)


@pytest.mark.parametrize("loaded", [torch.float16, torch.bfloat16], ids=str)
def test_optimised_fp32_is_fp32_whatever_the_loaded_dtype(loaded: torch.dtype, tmp_path: Path) -> None:
    long_model("bert", None, WINDOW).to(loaded).save_pretrained(tmp_path)
    model, expected = (AutoModel.from_pretrained(tmp_path, dtype=dtype) for dtype in ("auto", torch.float32))
    assert model.dtype == loaded
    hf_longattn.optimize_for_inference(model, "fp32")
    assert {x.dtype for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()} == {torch.float32}
    assert model.config.dtype == torch.float32
    with torch.no_grad():
        outputs = [x(tokens(1, 40)).last_hidden_state for x in (model, expected)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_linear_layers_by_onednn_compute_what_plain_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "mkl_is_slow", lambda: True)
    products: list[Tensor] = []

    def product(*arguments: Any) -> Tensor:
        products.append(onednn.fp32_product(*arguments))
        return products[-1]

    monkeypatch.setattr(optimize, "fp32_product", product)
    plain = nn.Sequential(nn.Linear(24, 40), Conv1D(40, 40), nn.GELU(), nn.Linear(40, 16, bias=False))
    fast = copy.deepcopy(plain)
    optimize.use_fast_products(fast)
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in plain.named_parameters()]
    x = torch.randn(3, 50, 24)
    with torch.no_grad():
        for values in (x, x[:, ::2], x.transpose(0, 1), x[:0], x[0, 0]):
            torch.testing.assert_close(fast(values), plain(values), rtol=1e-5, atol=1e-6)
        assert len(products) == 12, "empty inputs are plain, all others by oneDNN"
        torch.testing.assert_close(pickle.loads(pickle.dumps(fast))(x), plain(x), rtol=1e-5, atol=1e-6)
        assert len(products) == 15

        # all that follows is plain
        assert torch.equal(copy.deepcopy(fast).double()(x.double()), copy.deepcopy(plain).double()(x.double()))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fast(x), plain(x))
        assert torch.equal(torch.func.vmap(fast)(x), torch.func.vmap(plain)(x))
        exported = torch.export.export(fast, (x,)).module()
        assert torch.equal(exported(x), plain(x))
        assert fast.to("meta")(x.to("meta")).shape == (3, 50, 16)
    assert len(products) == 15


def test_linear_layers_by_onednn_give_gradients_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "mkl_is_slow", lambda: True)
    plain = nn.Linear(24, 40)
    fast = copy.deepcopy(plain)
    optimize.use_fast_products(fast)
    x = torch.randn(3, 24, requires_grad=True)
    gradients = [torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters())) for layer in (plain, fast)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    fast.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(fast(x).square().sum(), x)[0], gradients[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("amx", [True, False])
def test_a_warning_says_where_int8_is_not_the_fastest(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(optimize, "has_amx", lambda: amx)
    monkeypatch.setattr(optimize.logger, "warning_once", warnings.append)
    hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "fp32")
    hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "int8")
    assert warnings == [optimize.INT8_IS_SLOWER] * amx


def test_optimize_for_inference_refuses_precisions_and_models_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = long_model("bert", None, WINDOW)
    with pytest.raises(OptionError, match=r"There is no precision 'int4'; choose one of int8, fp16, fp32."):
        hf_longattn.optimize_for_inference(model, "int4")
    with pytest.raises(OptionError, match=r"for bf16, load the model with dtype=torch\.bfloat16"):
        hf_longattn.optimize_for_inference(model, "bf16")
    with pytest.raises(BackendError, match="takes a model of transformers or sentence-transformers, not Linear"):
        hf_longattn.optimize_for_inference(nn.Linear(2, 2), "int8")
    hf_longattn.optimize_for_inference(model, "fp32")
    with pytest.raises(BackendError, match="optimised for inference already \\(fp32\\); load it again to choose anew"):
        hf_longattn.optimize_for_inference(model, "int8")
    with pytest.raises(BackendError, match="is for CPUs, but this model is on 'meta'"):
        hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW).to("meta"), "int8")
    monkeypatch.setattr(torch.backends, "quantized", SimpleNamespace(supported_engines=["qnnpack"]))
    with pytest.raises(BackendError, match=r"no products with weights in fp16 \(fbgemm\); choose precision='fp32'"):
        hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "fp16")


def test_evaluating_gives_every_module_its_mode_back() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout())).train()
    model[1].eval()
    model[1][0].train()
    modes = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        model.train()
    assert [module.training for module in model.modules()] == modes


def test_an_int8_model_refuses_other_dtypes_and_devices_unchanged() -> None:
    model = hf_longattn.optimize_for_inference(long_model("bert", None, WINDOW), "int8")
    expected = model(**batch()).last_hidden_state
    for change in (model.half, model.float, lambda: model.to("meta"), lambda: nn.Sequential(model).double()):
        with pytest.raises(BackendError, match="load it again to move or convert it"):
            change()
    for same in (model, copy.deepcopy(model), model.to("cpu").bfloat16()):
        assert torch.equal(same(**batch()).last_hidden_state, expected)


def test_fp16_linear_equals_its_definition() -> None:
    for rows, features, outputs in SHAPES:
        plain = nn.Linear(features, outputs).requires_grad_(False)
        x = torch.randn(rows, 2, features)
        expected = x.double() @ plain.weight.half().double().T + plain.bias
        torch.testing.assert_close(Fp16Linear(plain.weight, plain.bias)(x), expected.float(), rtol=1e-5, atol=1e-5)


NEEDS_BF16 = pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor computes no bf16")
SHAPES = ((1, 64, 96), (3, 100, 7), (517, 96, 64))


def layer(features: int, outputs: int, *, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Linear:
    return nn.Linear(features, outputs, bias=bias).to(dtype).requires_grad_(False)


def int8_by_hand(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition in float64: both sides rounded to 8 bits, one scale per row."""

    def rounded(values: Tensor) -> Tensor:
        scale = values.float().abs().amax(-1, keepdim=True) / 127
        return ((values.float() * (1 / scale)).round() * scale).double()

    return rounded(x) @ rounded(weight).T + (0 if bias is None else bias.double())


@NEEDS_BF16
@every_case("dtype", [torch.bfloat16, torch.float32])
@every_case("bias", [True, False])
@every_case(("rows", "features", "outputs"), SHAPES)
def test_int8_linear_equals_its_definition(
    rows: int, features: int, outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    plain = layer(features, outputs, bias=bias, dtype=dtype)
    x = torch.randn(rows, features, dtype=dtype)
    found = Int8Linear(plain.weight, plain.bias)(x)
    expected = int8_by_hand(x, plain.weight, plain.bias)
    assert found.dtype == dtype
    away = (found.double() - expected).norm() / expected.norm()
    assert away < (6e-3 if dtype == torch.bfloat16 else 1e-6)
    assert (found.double() - plain(x).double()).norm() / expected.norm() < 2e-2


@NEEDS_BF16
@pytest.mark.parametrize("amx", [False, True])
def test_int8_products_of_signed_and_unsigned_inputs_are_the_same(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AMX the kernel is given unsigned ones. Every 8-bit number is among them."""
    monkeypatch.setattr(onednn, "has_amx", lambda: amx)
    codes = torch.randint(-127, 128, (40, 64), dtype=torch.int8)
    weight = torch.randint(-127, 128, (24, 64), dtype=torch.int8)
    codes[:4] = torch.arange(-128, 128).to(torch.int8).view(4, 64)
    ones = torch.ones(24)
    zeros = torch.zeros(24, dtype=torch.int32)
    sums = onednn.int8_product(codes, onednn.pack_int8(weight), ones, zeros, torch.float32)
    assert torch.equal(sums, (codes.double() @ weight.double().T).float())


def test_products_in_8_bits_run_in_a_kernel() -> None:
    """oneDNN's reference code, which it takes for data types without a kernel, is some thousand times as slow as
    fp32."""
    weight = torch.randn(512, 512)
    x = torch.randn(128, 512)

    def seconds(run: nn.Module) -> float:
        run(x)
        started = time.process_time()
        run(x)
        return time.process_time() - started

    plain = nn.Linear(512, 512)
    assert min(seconds(Int8Linear(weight, None)) for _ in range(3)) < 50 * max(seconds(plain) for _ in range(3))


def test_int8_linear_reads_transposed_tensors() -> None:
    weight = torch.randn(64, 96, dtype=torch.bfloat16)
    x = torch.randn(64, 17, dtype=torch.bfloat16)
    expected = Int8Linear(weight.t().contiguous(), None)(x.t().contiguous())
    assert torch.equal(Int8Linear(weight.t(), None)(x.t()), expected)


def test_int8_linear_of_a_token_depends_on_no_other() -> None:
    rows = ROWS_PER_PRODUCT + 3  # more than are in one product
    quantised = Int8Linear(torch.randn(40, 512, dtype=torch.bfloat16), torch.randn(40, dtype=torch.bfloat16))
    x = torch.randn(rows, 512, dtype=torch.bfloat16) * torch.logspace(-3, 3, rows)[:, None].bfloat16()
    whole = quantised(x)
    for row in (0, 17, rows - 1):
        assert torch.equal(quantised(x[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf")])
def test_int8_linear_keeps_tokens_that_are_not_finite_apart(value: float) -> None:
    quantised = Int8Linear(torch.randn(40, 64, dtype=torch.bfloat16), torch.randn(40, dtype=torch.bfloat16))
    x = torch.randn(9, 64, dtype=torch.bfloat16)
    expected = quantised(x)
    x[3, 5] = value
    found = quantised(x)
    assert not found[3].isfinite().any()
    others = torch.arange(9) != 3
    assert torch.equal(found[others], expected[others])


def test_quantised_rows_of_zeros_are_finite() -> None:
    values, scale = quantise(torch.zeros(2, 3))
    assert not values.any()
    assert (scale > 0).all()


def test_int8_linear_refuses_gradients() -> None:
    layer = Int8Linear(torch.randn(8, 64).bfloat16(), None)
    with pytest.raises(BackendError, match="computes no gradients"):
        layer(torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True))
