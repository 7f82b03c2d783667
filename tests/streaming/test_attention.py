"""`AttentionStream`: what one pass gives, however the sequence is cut into pieces, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_longattn import Mechanism, attend, build_mechanism, list_mechanisms
from hf_longattn.engines.cpu.band import band_plan
from hf_longattn.errors import LengthError, OptionError, StreamError
from hf_longattn.mechanisms.common.masked import MaskedMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.sharding import only_locality
from hf_longattn.streaming import AttentionStream
from hf_longattn.streaming.attention import locality_of
from tests.cells import every_cell
from tests.mechanisms.listed import visible

HEADS, KEY_HEADS, WIDTH = 4, 2, 16
UNEVEN = (1, 40, 0, 3, 29, 2, 64)
LOCAL_OPTIONS: dict[str, dict[str, Any]] = {
    "longformer": {"left": 20, "right": 9, "global_tokens": ()},
    "segmented": {"block_size": 24, "integration": "previous"},
    "shifted_groups": {"group_size": 24, "keep_groups": True},
}
"""Options with which mechanisms that otherwise look at the whole sequence do not."""
BANDS = (
    {"window": 16},
    {"left": 10, "right": 3},
    {"left": 7, "right": 0},
    {"left": 0, "right": 9},
    {"window": 8, "dilation": (1, 1, 2, 3)},
)


def inputs(length: int, dtype: torch.dtype = torch.float32, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    q, k, v = (torch.randn(rows, h, length, WIDTH, dtype=dtype, generator=generator) for h in heads)
    return q, k, v


def pieces(length: int, sizes: Sequence[int]) -> Iterator[slice]:
    """Pieces of these sizes, again and again."""
    start, number = 0, 0
    while start < length:
        yield slice(start, start := min(length, start + sizes[number % len(sizes)]))
        number += 1


def streamed(stream: AttentionStream, qkv: tuple[Tensor, ...], parts: Iterable[slice]) -> Tensor:
    outs = [stream.feed(*(x[:, :, part] for x in qkv), start=part.start) for part in parts]
    return torch.cat([*outs, stream.finish()], 2)


def local_mechanisms() -> list[tuple[str, bool]]:
    """The mechanisms that read a stream, each with its causal and bidirectional forms."""
    return [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal, grid=False) if streams(name, causal)]


def streams(name: str, causal: bool) -> bool:
    try:
        locality_of(built(name), causal)
    except StreamError:
        return False
    return True


def built(name: str) -> Mechanism:
    return build_mechanism(name, num_heads=HEADS, head_dim=WIDTH, **LOCAL_OPTIONS.get(name, mechanism_class(name).sample)).eval()


def test_local_mechanisms_stream() -> None:
    assert {"window", "longformer", "chunked", "segmented", "shifted_groups", "adaptive_span", "transformer_xl"} <= dict(
        local_mechanisms()
    ).keys()


@every_cell(("name", "causal"), local_mechanisms())
def test_every_mechanism_that_streams_gives_what_one_pass_gives(name: str, causal: bool) -> None:
    mechanism, qkv = built(name).double(), inputs(203, torch.float64)
    out = streamed(AttentionStream(mechanism, causal=causal, block=5), qkv, pieces(203, UNEVEN))
    torch.testing.assert_close(out, attend(*qkv, mechanism, causal=causal), atol=1e-12, rtol=0)


@pytest.mark.thorough
@every_cell("options", BANDS, ids=str)
@every_cell("block", [1, 7, 32, 500])
def test_the_bits_do_not_depend_on_the_pieces(options: dict[str, Any], block: int) -> None:
    qkv = inputs(131)
    outs = [
        streamed(AttentionStream("window", block=block, **options), qkv, pieces(131, sizes))
        for sizes in ((131,), (1,), (13,), (31, 2), UNEVEN)
    ]
    assert all(torch.equal(out, outs[0]) for out in outs)
    torch.testing.assert_close(outs[0], attend(*qkv, "window", **options), atol=1e-6, rtol=0)


@every_cell("dtype", [torch.float32, torch.float64])
@every_cell(("left", "right"), [(60, 20), (64, 0), (100, 100)])
def test_blocks_of_the_band_engine_have_the_bits_of_one_pass(left: int, right: int, dtype: torch.dtype) -> None:
    qkv = inputs(700, dtype)
    plan = band_plan(700, 700, 0, left, right, dtype, torch.get_num_threads())
    assert not plan.dense
    stream = AttentionStream("window", left=left, right=right, block=plan.block)
    assert torch.equal(streamed(stream, qkv, pieces(700, (1, 90, 37))), attend(*qkv, "window", left=left, right=right))


@every_cell(("name", "causal"), [case for case in local_mechanisms() if isinstance(built(case[0]), MaskedMechanism)])
def test_final_outputs_and_kept_keys_are_those_of_the_mask(name: str, causal: bool) -> None:
    mechanism = built(name)
    local = only_locality(mechanism, causal)
    assert isinstance(mechanism, MaskedMechanism)
    assert local is not None
    queries, keys = visible(mechanism, 150, causal).flatten(0, 1).any(0).nonzero().unbind(1)
    for seen in range(151):
        final = local.final(seen)
        assert final <= seen
        assert (keys[queries < final] < seen).all(), f"an output of the first {final} sees a token after {seen}"
        assert (keys[queries >= seen] >= local.first(seen)).all()


def test_chunks_leave_as_soon_as_they_are_whole() -> None:
    qkv = inputs(20)
    stream = AttentionStream("chunked", chunk_size=5, left_chunks=1, block=1)
    counts = [stream.feed(*(x[:, :, at : at + 1] for x in qkv)).shape[2] for at in range(20)]
    assert counts == [0, 0, 0, 0, 5] * 4
    assert stream.finish().shape[2] == 0


def test_outputs_wait_for_the_keys_ahead_and_no_longer() -> None:
    qkv = inputs(20)
    stream = AttentionStream("window", left=4, right=3, block=1)
    assert [stream.feed(*(x[:, :, at : at + 1] for x in qkv)).shape[2] for at in range(20)] == [0] * 3 + [1] * 17
    assert stream.finish().shape[2] == 3


@pytest.mark.parametrize("options", [{"left": 30, "right": 10}, {"left": 5, "right": 0}], ids=str)
def test_memory_does_not_grow(options: dict[str, Any]) -> None:
    stream, qkv = AttentionStream("window", block=8, **options), inputs(64)
    bytes_kept = []
    for _ in range(20):
        stream.feed(*qkv)
        bytes_kept.append(sum(x.untyped_storage().nbytes() for x in stream.state_dict().values()))
    assert len(set(bytes_kept[1:])) == 1
    kept_tokens = 2 * (options["left"] + options["right"] + 8)  # keys and values, of half as many heads as queries
    assert bytes_kept[-1] <= 4 * 2 * WIDTH * (KEY_HEADS * kept_tokens + HEADS * (options["right"] + 8)) + 32


def test_a_stream_goes_on_from_its_saved_state(tmp_path: Path) -> None:
    qkv = inputs(131)
    parts, options = list(pieces(131, UNEVEN)), {"left": 10, "right": 3}
    expected = streamed(AttentionStream("window", **options), qkv, parts)
    for stop in range(len(parts) + 1):
        first, second = AttentionStream("window", **options), AttentionStream("window", **options)
        outs = [first.feed(*(x[:, :, part] for x in qkv)) for part in parts[:stop]]
        save_file(first.state_dict(), tmp_path / "state.safetensors")
        second.load_state_dict(load_file(tmp_path / "state.safetensors"))
        assert torch.equal(torch.cat([*outs, streamed(second, qkv, parts[stop:])], 2), expected)


def test_a_stream_moves_to_another_dtype() -> None:
    qkv = inputs(60)
    stream = AttentionStream("window", left=10, right=3)
    out = stream.feed(*(x[:, :, :30] for x in qkv))
    rest = stream.to(torch.float64).feed(*(x[:, :, 30:].double() for x in qkv))
    assert (out.dtype, rest.dtype) == (torch.float32, torch.float64)
    whole = torch.cat([out.double(), rest, stream.finish()], 2)
    torch.testing.assert_close(whole, attend(*(x.double() for x in qkv), "window", left=10, right=3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("relative", ["alibi", "t5_buckets"])
def test_relative_positions_move_with_a_stream(relative: str) -> None:
    qkv = inputs(80)
    stream = AttentionStream("window", left=10, right=3, relative=relative)
    stream.feed(*(x[:, :, :40] for x in qkv))
    rest = stream.to("meta").feed(*(x[:, :, 40:].to("meta") for x in qkv))
    assert rest.is_meta
    assert rest.shape[2] == 32


@pytest.mark.parametrize(("name", "causal"), [("infini", False), ("window2d", True)])
def test_a_form_that_a_mechanism_lacks_is_the_reason(name: str, causal: bool) -> None:
    with pytest.raises(StreamError, match=f"'{name}' exists only with causal={not causal}, but this stream needs causal={causal}"):
        AttentionStream(name, causal=causal, **mechanism_class(name).sample)


def test_relative_positions_stream() -> None:
    qkv = inputs(90)
    for relative in ("alibi", "t5_buckets", "transformer_xl"):
        options = {"left": 20, "right": 6, "relative": relative}
        stream = AttentionStream("window", block=7, **options)
        torch.testing.assert_close(streamed(stream, qkv, pieces(90, UNEVEN)), attend(*qkv, "window", **options), atol=1e-6, rtol=0)


@every_cell(
    ("name", "options"),
    [
        ("full", {}),
        ("linformer", {}),
        ("linear", {}),
        ("longformer", {"global_tokens": (0,)}),
        ("longformer", {"global_tokens": (), "separate_global": True}),
        ("window", {"num_sinks": 4}),
        ("bigbird", {}),
        ("window", {"order": "hilbert"}),
    ],
)
def test_what_looks_at_the_whole_sequence_is_refused(name: str, options: dict[str, Any]) -> None:
    sentence = r"^(M|With these options, m)echanism '\w+' [^.]+; (choose a mechanism that sees neighbours only|leave out)[^.]*\.$"
    with pytest.raises(StreamError, match=sentence) as refused:
        AttentionStream(name, **options)
    assert ("needs the layer's input" in str(refused.value)) == ("separate_global" in options)


def test_a_piece_that_does_not_follow_is_refused() -> None:
    q, k, v = inputs(10)
    stream = AttentionStream("window", left=4, right=3)
    stream.feed(q, k, v, start=0)
    with pytest.raises(StreamError, match="starts at token 4 was fed before: the next token is 10"):
        stream.feed(q, k, v, start=4)
    with pytest.raises(StreamError, match="starts at token 20 leaves a gap: the next token is 10"):
        stream.feed(q, k, v, start=20)
    with pytest.raises(StreamError, match=r"\(1, 4, 10, 16\) .* the same rows from first to last"):
        stream.feed(q[:1], k[:1], v[:1])
    with pytest.raises(StreamError, match=r"torch\.float64 on cpu, but the stream's are .* torch\.float32"):
        stream.feed(q.double(), k.double(), v.double())
    with pytest.raises(LengthError, match="A piece of a stream is q"):
        stream.feed(q, k[:, :, :4], v[:, :, :4])
    assert stream.seen == 10
    stream.finish()
    for late in (lambda: stream.feed(q, k, v), stream.finish):
        with pytest.raises(StreamError, match="The stream is finished; begin a new one"):
            late()


def test_other_mistakes_are_refused() -> None:
    with pytest.raises(StreamError, match="ends before its first token"):
        AttentionStream("window").finish()
    with pytest.raises(OptionError, match="block is 0"):
        AttentionStream("window", block=0)
    with pytest.raises(OptionError, match="pass them to build_mechanism"):
        AttentionStream(build_mechanism("window", num_heads=1, head_dim=4), window=4)
    stream = AttentionStream("window", left=4, right=3)
    with pytest.raises(StreamError, match="not the state of an attention stream"):
        stream.load_state_dict({"k": torch.zeros(1)})
    other = AttentionStream("window", left=9, right=3)
    other.feed(*inputs(40))
    with pytest.raises(StreamError, match="does not fit its mechanism, after 40 tokens"):
        stream.load_state_dict(other.state_dict())
