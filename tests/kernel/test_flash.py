"""The kernel's functions against attention written out, and the repository that is built and pushed."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts import build_kernel, push_kernel
from scripts.kernel import flash

from ..hub_server import READER, Hub

WINDOWS = ((-1, -1), (16, 16), (100, 0), (0, 0), (-1, 7))
LENGTHS = {
    "texts of different lengths, one without a query": ((5, 300, 0, 200), (5, 300, 3, 200)),
    "a piece of a prompt": ((40,), (300,)),
    "decoding steps": ((1, 1, 1), (400, 3, 90)),
    "more queries than keys": ((200,), (40,)),
    "texts of equal lengths": ((128, 128, 128), (128, 128, 128)),
    "pieces of equal lengths": ((64, 64), (300, 300)),
}


def written_out(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: tuple[int, int], softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Attention ``(n, H, D)`` of one text, as flash-attn defines it."""
    n, m, groups = len(q), len(k), q.shape[1] // k.shape[1]
    scores = torch.einsum("nhd,mhd->hnm", q, k.repeat_interleave(groups, 1)) * q.shape[2] ** -0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(n)[:, None] + m - n - torch.arange(m)
    left, right = window[0], 0 if causal else window[1]
    hidden = torch.zeros(n, m, dtype=torch.bool)
    if left >= 0:
        hidden |= distance > left
    if right >= 0:
        hidden |= distance < -right
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, n, 1)], 2)
    weights = scores.softmax(2)[..., :m].nan_to_num(0)
    return torch.einsum("hnm,mhd->nhd", weights, v.repeat_interleave(groups, 1))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_texts_in_one_row_and_their_gradients_are_those_written_out(lengths: str, softcap: float | None) -> None:
    of_queries, of_keys = LENGTHS[lengths]
    starts, starts_of_keys = ([0, *itertools.accumulate(sizes)] for sizes in (of_queries, of_keys))
    offsets = torch.tensor(starts, dtype=torch.int32), torch.tensor(starts_of_keys, dtype=torch.int32)
    for causal, window, has_sinks in itertools.product((False, True), WINDOWS, (False, True)):
        q = torch.randn(starts[-1], 4, 8, dtype=torch.float64, requires_grad=True)
        k, v = (torch.randn(starts_of_keys[-1], 2, 8, dtype=torch.float64, requires_grad=True) for _ in "kv")
        sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if has_sinks else None
        settings: dict[str, Any] = {"causal": causal, "window_size": window, "softcap": softcap, "s_aux": sinks}
        out = flash.flash_attn_varlen_func(q, k, v, *offsets, max(of_queries), max(of_keys), **settings)
        expected = torch.cat(
            [
                written_out(q[a:b], k[c:d], v[c:d], causal, window, softcap, sinks)
                for (a, b), (c, d) in zip(itertools.pairwise(starts), itertools.pairwise(starts_of_keys), strict=True)
            ]
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        inputs = [x for x in (q, k, v, sinks) if x is not None]
        grad = torch.randn_like(out)
        torch.testing.assert_close(
            *(torch.autograd.grad(x, inputs, grad) for x in (out, expected)), rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_batches_in_other_dtypes_are_those_of_float64(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 100, heads, 16).to(dtype) for heads in (4, 2, 2))
    for causal, window in itertools.product((False, True), WINDOWS):
        out = flash.flash_attn_func(q, k, v, causal=causal, window_size=window)
        exact = flash.flash_attn_func(*(x.double() for x in (q, k, v)), causal=causal, window_size=window)
        assert out.dtype == dtype
        assert (out - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_blocks_of_queries_which_other_devices_run_are_those_of_the_cpus_engine() -> None:
    q, k, v = (torch.randn(1, heads, 150, 8, dtype=torch.float64) for heads in (4, 2, 2))
    offsets = torch.tensor([0, 100, 150]), torch.tensor([0, 100, 150])
    for left, right in ((1 << 40, 0), (16, 16), (1 << 40, 1 << 40)):
        settings = flash.Settings(left, right, 0.3, 0.0, 0.0, torch.randn(4, dtype=torch.float64))
        blocks = flash.attend_in_blocks(q, k, v, offsets, settings)
        rows = (x[0].transpose(0, 1) for x in (q, k, v))
        assert (flash.attend(*rows, offsets, (100, 100), settings) - blocks[0].transpose(0, 1)).abs().max() < 1e-13


def test_dropped_weights_leave_the_mean_and_are_drawn_by_the_seed() -> None:
    q, k = torch.randn(1, 64, 2, 8), torch.randn(1, 64, 2, 8)
    v = torch.ones(1, 64, 2, 8)
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(flash.flash_attn_func(q, k, v, dropout_p=0.3, window_size=(16, 16)))
    assert outs[0].equal(outs[1])
    assert not outs[0].equal(torch.ones_like(outs[0]))
    assert float(outs[0].mean()) == pytest.approx(1, abs=0.05)


def test_a_cache_takes_new_keys_in_place_with_and_without_a_table_of_blocks() -> None:
    q, k, v = (torch.randn(2, 1, heads, 8, dtype=torch.float64) for heads in (4, 2, 2))
    lengths = torch.tensor([37, 5])
    rows_k, rows_v = (torch.randn(2, 48, 2, 8, dtype=torch.float64) for _ in "kv")
    table = torch.tensor([[4, 0, 2], [1, 5, 3]])
    blocks_k, blocks_v = (torch.zeros(6, 16, 2, 8, dtype=torch.float64) for _ in "kv")
    blocks_k[table], blocks_v[table] = rows_k.view(2, 3, 16, 2, 8), rows_v.view(2, 3, 16, 2, 8)
    settings: dict[str, Any] = {"cache_seqlens": lengths, "causal": True, "window_size": (20, 0)}
    by_rows = flash.flash_attn_with_kvcache(q, rows_k, rows_v, k, v, **settings)
    by_blocks = flash.flash_attn_with_kvcache(q, blocks_k, blocks_v, k, v, block_table=table, **settings)
    assert by_rows.equal(by_blocks)
    for row, length in enumerate(lengths.tolist()):
        assert rows_k[row, length].equal(k[row, 0])
        assert rows_v[row, length].equal(v[row, 0])
        keys, values = rows_k[row, : length + 1], rows_v[row, : length + 1]
        expected = written_out(q[row], keys, values, True, (20, 0), None, None)
        torch.testing.assert_close(by_rows[row], expected, rtol=0, atol=1e-12)


def test_transformations_of_torch_func_compute_the_same() -> None:
    q, k, v = (torch.randn(1, 40, 2, 8, dtype=torch.float64) for _ in "qkv")

    def total(x: Tensor) -> Tensor:
        return flash.flash_attn_func(x, k, v, window_size=(8, 8)).square().sum()

    x = q.clone().requires_grad_()
    total(x).backward()
    torch.testing.assert_close(torch.func.grad(total)(q), x.grad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alibi_slopes": torch.ones(4)}, NotImplementedError, "alibi_slopes"),
        ({"return_attn_probs": True}, NotImplementedError, "return_attn_probs"),
        ({"s_aux": torch.ones(3)}, ValueError, "one number for each of 4 heads"),
        ({"q": torch.ones(1, 8, 4, 8).to(torch.float8_e4m3fn)}, TypeError, "float8_e4m3fn"),
        ({"q": torch.ones(1, 8, 4, 16)}, ValueError, "head sizes"),
        ({"q": torch.ones(1, 8, 3, 8)}, ValueError, "multiple"),
        ({"q": torch.ones(1, 8, 4, 8, device="meta")}, ValueError, "different devices"),
        ({"q": torch.ones(1, 8, 0, 8)}, ValueError, "multiple"),
        ({"q": torch.ones(2, 8, 4, 8)}, ValueError, "a batch of 2 rows, but k and v have 1"),
        ({"q": torch.ones(8, 4, 8)}, ValueError, "must have 4 axes"),
        ({"k": torch.ones(8, 2, 8)}, ValueError, "must have 4 axes"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0"),
        ({"dropout_p": -0.1}, ValueError, "dropout_p is -0.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_sentence(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    q, k, v = (torch.ones(1, 8, heads, 8) for heads in (4, 2, 2))
    with pytest.raises(error, match=message):
        flash.flash_attn_func(**{"q": q, "k": k, "v": v, **arguments})


def test_a_table_of_another_shape_and_a_full_cache_are_refused() -> None:
    q, cache = torch.ones(2, 1, 4, 8), torch.ones(6, 16, 2, 8)
    with pytest.raises(ValueError, match=r"block_table.* has shape \(1, 3\), but needs a row for each of 2 texts"):
        flash.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=3, block_table=torch.zeros(1, 3).long())
    new = torch.ones(2, 1, 2, 8)
    offsets = torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="the same texts"):
        flash.flash_attn_varlen_func(q[:, 0], new[:, 0], new[:, 0], *offsets, 2, 1)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cu_seqlens_k": torch.tensor([0, 6, 12])}, ValueError, "leave the 8 queries and 9 keys"),
        ({"cu_seqlens_q": torch.tensor([0, 4, 9])}, ValueError, "cu_seqlens_q 4 to 9"),
        ({"cu_seqlens_q": torch.tensor([-4, 0, 4])}, ValueError, "cu_seqlens_q -4 to 0"),
        ({"cu_seqlens_q": torch.tensor([0, 6, 4])}, ValueError, "may not decrease"),
        ({"cu_seqlens_k": torch.tensor([0, 6, 4])}, ValueError, "may not decrease"),
        ({"cu_seqlens_q": torch.tensor([[0, 4, 8]])}, ValueError, r"in 1 axes; it is torch.int64 of shape \(1, 3\)"),
        ({"cu_seqlens_k": torch.tensor([0.0, 6.0, 9.0])}, ValueError, "torch.float32"),
        ({"cu_seqlens_q": [0, 4, 8]}, TypeError, r"a tensor of integers, but is \[0, 4, 8\]"),
        ({"q": torch.ones(1, 8, 4, 8)}, ValueError, "q must have 3 axes, and k and v 3"),
        ({"block_table": torch.tensor([[0], [1]])}, ValueError, "q must have 3 axes, and k and v 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_offsets_are_one_sentence(
    arguments: dict[str, Any], error: type[Exception], message: str, softcap: float | None
) -> None:
    q, k = torch.ones(8, 4, 8), torch.ones(9, 2, 8)
    given = {"cu_seqlens_q": torch.tensor([0, 4, 8]), "cu_seqlens_k": torch.tensor([0, 5, 9])}
    with pytest.raises(error, match=message):
        flash.flash_attn_varlen_func(
            **{"q": q, "k": k, "v": k, "max_seqlen_q": 4, "max_seqlen_k": 9, "softcap": softcap, **given, **arguments}
        )


TABLE = torch.tensor([[4, 0, 2], [1, 5, 3]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": torch.ones(2, 1, 2, 8)}, "k and v must be given together"),
        ({"v": torch.ones(2, 1, 2, 8)}, "k and v must be given together"),
        ({"k": torch.ones(1, 1, 2, 8), "v": torch.ones(1, 1, 2, 8)}, "New k and v must have the rows of q"),
        ({"k": torch.ones(2, 2, 2, 8), "v": torch.ones(2, 1, 2, 8)}, "New k and v must have the rows of q"),
        ({"q": torch.ones(2, 4, 8)}, "q must have 4 axes"),
        ({"q": torch.ones(7, 1, 4, 8), "block_table": None}, "the cache without one, has shape"),
        ({"cache_seqlens": -1}, r"cache_seqlens \[-1, -1\] must be 2 numbers from 0; 48 at most with 0 new keys"),
        ({"cache_seqlens": torch.tensor([3, -1])}, r"cache_seqlens \[3, -1\]"),
        ({"cache_seqlens": 49}, "48 at most with 0 new keys"),
        ({"cache_seqlens": 17, "block_table": None}, "16 at most with 0 new keys"),
        ({"cache_seqlens": torch.tensor([3, 3, 3])}, "must be 2 numbers"),
        ({"cache_seqlens": torch.tensor([3.0, 3.0])}, "torch.float32"),
        (
            {"cache_seqlens": 48, "k": torch.ones(2, 1, 2, 8), "v": torch.ones(2, 1, 2, 8)},
            "48 at most with 1 new keys",
        ),
        ({"block_table": TABLE[0]}, "block_table must be int32 or int64 in 2 axes"),
        ({"block_table": TABLE.float()}, "block_table must be int32 or int64"),
        ({"block_table": TABLE - 1}, "block_table has blocks -1 to 4; the cache has 0 to 5"),
        ({"block_table": TABLE + 1}, "block_table has blocks 1 to 6"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_cache_is_one_sentence_and_stays_as_it_was(arguments: dict[str, Any], message: str) -> None:
    cache = torch.zeros(6, 16, 2, 8)
    given = {"q": torch.ones(2, 1, 4, 8), "k_cache": cache, "v_cache": cache, "block_table": TABLE}
    with pytest.raises(ValueError, match=message):
        flash.flash_attn_with_kvcache(**{**given, **arguments})
    assert not cache.any()


def test_blocks_that_are_not_in_use_may_have_any_number() -> None:
    q, cache = torch.randn(2, 1, 4, 8), torch.randn(6, 16, 2, 8)
    outs = []
    for unused in (-1, 2, 99):
        table = TABLE.where(TABLE != 3, unused)
        outs.append(
            flash.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=torch.tensor([40, 32]), block_table=table)
        )
    assert outs[0].equal(outs[1])
    assert outs[0].equal(outs[2])


def test_a_call_may_have_no_texts() -> None:
    q, cache, table = torch.ones(0, 4, 8), torch.ones(6, 16, 2, 8), TABLE[:0]
    offsets = torch.tensor([0])
    out = flash.flash_attn_varlen_func(q, cache, cache, offsets, offsets, 0, 0, block_table=table)
    assert out.shape == q.shape
    assert flash.flash_attn_with_kvcache(q[:, None], cache, cache, block_table=table).shape == (0, 1, 4, 8)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_texts_without_keys_have_gradients_of_zero(softcap: float | None) -> None:
    q, sinks = torch.randn(1, 4, 4, 8, requires_grad=True), torch.randn(4, requires_grad=True)
    k, v = (torch.randn(1, 0, 2, 8, requires_grad=True) for _ in "kv")
    out = flash.flash_attn_func(q, k, v, softcap=softcap, s_aux=sinks)
    assert not out.any()
    for grad in torch.autograd.grad(out.sum(), (q, k, v, sinks)):
        assert not grad.any()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kernel") / "flash-longattn"
    build_kernel.main([str(folder)])
    return folder


def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("longattn_kernel", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_process_may_load_the_file_under_two_names(repository: Path) -> None:
    modules = [module_of(repository / "build" / variant / "__init__.py") for variant in ("torch-cpu", "torch-cuda")]
    assert modules[0].OPERATORS != modules[1].OPERATORS
    q = torch.randn(1, 50, 2, 8, requires_grad=True)
    for module in modules:  # the first is still whole
        module.flash_attn_func(q, q, q, window_size=(8, 8)).sum().backward()


def test_the_built_file_runs_without_the_package_and_computes_the_same(repository: Path) -> None:
    file = repository / "build" / "torch-cpu" / "__init__.py"
    code = f"""
import sys, importlib.util
spec = importlib.util.spec_from_file_location("kernel", {str(file)!r})
module = sys.modules["kernel"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
import torch
x = torch.ones(1, 8, 2, 8)
module.flash_attn_func(x, x, x)
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {{"hf_longattn", "transformers", "numpy.random"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
    built = module_of(file)
    q, k, v = (torch.randn(1, 300, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    for causal, window in itertools.product((False, True), WINDOWS):
        settings: dict[str, Any] = {"causal": causal, "window_size": window}
        ours, theirs = (one.flash_attn_func(q, k, v, **settings) for one in (built, flash))
        assert ours.equal(theirs)
        grads = [torch.autograd.grad(x.sum(), (q, k, v)) for x in (ours, theirs)]
        assert all(a.equal(b) for a, b in zip(*grads, strict=True))


def test_every_build_has_the_same_file_of_at_most_1500_lines_and_its_metadata(repository: Path) -> None:
    files = sorted(repository.glob("build/*/__init__.py"))
    assert {file.parent.name for file in files} == build_kernel.VARIANTS.keys()
    assert len({file.read_bytes() for file in files}) == 1
    assert files[0].read_text().count("\n") <= build_kernel.LINES == 1500
    for file in files:
        metadata = json.loads(file.with_name("metadata.json").read_text())
        assert metadata["backend"]["type"] == build_kernel.VARIANTS[file.parent.name]
        assert (metadata["name"], metadata["version"]) == ("flash-longattn", 1)
    assert "flash-longattn" in (repository / "README.md").read_text()
    assert (repository / "LICENSE").is_file()


def test_a_folder_with_files_is_not_overwritten(repository: Path) -> None:
    with pytest.raises(SystemExit, match="exists; choose a folder"):
        build_kernel.main([str(repository)])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match=r"cannot be written .* choose a folder that you may write"):
        build_kernel.main([str(file / "kernel")])
    monkeypatch.setattr("tempfile.tempdir", str(file))
    with pytest.raises(SystemExit, match=r"no temporary folder .* set TMPDIR"):
        push_kernel.main(["writer"])


def test_the_kernel_is_pushed_to_the_branches_that_transformers_reads(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    push_kernel.main(["writer"])
    assert "Nothing was uploaded" in capsys.readouterr().out
    assert not server.repos
    push_kernel.main(["writer", "--upload"])
    assert [*server.repos] == [f"writer/{name}" for name in build_kernel.NAMES]
    for repo in server.repos.values():
        assert {"main", "v1"} <= repo.branches.keys()
        for branch in ("main", "v1"):
            assert {f"build/{variant}/__init__.py" for variant in build_kernel.VARIANTS} <= repo.branches[
                branch
            ].keys()
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(SystemExit, match="refused writer/"):
        push_kernel.main(["writer", "--upload"])
