"""`Stream`: a model of sound gives from pieces what it gives from the whole, in memory that does not grow, and goes on where it stopped."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCTC

from hf_longattn import enable_long_attention
from hf_longattn.errors import AudioError, StreamError
from hf_longattn.families import FAMILIES, LongMoonshineStreamingModel
from hf_longattn.modeling.family.stream_rule import Attention, Chain, Convolution
from hf_longattn.positions.distances import Locality
from hf_longattn.streaming import Stream
from hf_longattn.streaming.stages import RUNNING, NothingFinal, Run, Stage, hook
from scripts.dev.tools.small_models import Shape, small_audio_config
from tests.cells import every_cell
from tests.families import test_moonshine_streaming as moonshine
from tests.grids import alternately, grid
from tests.modeling.test_audio_models import Largest
from tests.warm import run_fresh

ROOT = Path(__file__).parents[2]

STREAMED = [
    (name, head)
    for name in FAMILIES
    if FAMILIES[name].rule.stream is not None
    for head in FAMILIES[name].model_classes
    if head.endswith(("ForCTC",) if FAMILIES[name].wraps_encoder else ("Model", "ForCTC", "Encoder"))
]
SHAPE = Shape(layers=2, inner=48)
FRAME = 320
WINDOW = {"mechanism": "window", "left": 7, "right": 3}
CHUNKED = {"mechanism": "chunked", "chunk_size": 6, "left_chunks": 2}
SAMPLES = 40_123


def model_of(base: str = "wav2vec2", head: str = "ForCTC", attention: dict[str, Any] | None = None, **values: Any) -> Any:
    """A small Long model in whose outputs attention shows."""
    torch.manual_seed(0)
    config, family = small_audio_config(base, SHAPE, **{"feat_extract_norm": "layer", **values}).to_dict(), FAMILIES[base]
    name = next(name for name in family.model_classes if name.endswith(head))
    config = family.config_class(**{**config, "model_type": family.config_class.model_type}, long_attention=attention or WINDOW)
    model: Any = family.model_class(name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval()


def sound(samples: int = SAMPLES, rows: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, samples, dtype=dtype, generator=torch.Generator().manual_seed(1))


def heard(model: Any, seconds: float, rows: int = 2) -> Tensor:
    """A sound in fp64, as the model takes it."""
    rule: Any = model.family.rule
    width = () if rule.features is None else (rule.features(model.config),)
    return torch.randn(rows, rule.length(seconds), *width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def whole(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out.logits if hasattr(out, "logits") else out.last_hidden_state


def streamed(stream: Stream, x: Tensor, size: int, first: int = 0) -> Tensor:
    pieces = [stream.feed(x[:, at : at + size], start=at) for at in range(first, x.shape[1], size)]
    return torch.cat([*pieces, stream.finish()], 1)


@every_cell(("model", "chunked"), alternately(STREAMED))
def test_a_stream_gives_what_one_pass_gives(model: tuple[str, str], chunked: bool) -> None:
    model = model_of(*model, CHUNKED if chunked else WINDOW).double()
    seconds = 3.321 if model.family.rule.features is None else 11.77
    x = heard(model, seconds)
    stream = Stream(model)
    out = streamed(stream, x, x.shape[1] // 11)
    torch.testing.assert_close(out, whole(model, x), atol=1e-11, rtol=0)
    stream.reset()
    assert torch.equal(streamed(stream, x, x.shape[1]), out)


KINDS = {"wav2vec2-bert": ("rotary", "relative", "relative_key", None), "wav2vec2-conformer": ("rotary", "relative", None)}


@every_cell(("base", "position"), [(base, kind) for base, kinds in KINDS.items() for kind in kinds])
def test_positions_of_every_kind_stream(base: str, position: str | None) -> None:
    model = model_of(base, position_embeddings_type=position).double()
    x = heard(model, 2.5)
    torch.testing.assert_close(streamed(Stream(model), x, x.shape[1] // 9), whole(model, x), atol=1e-11, rtol=0)


@pytest.mark.thorough
@every_cell("head", ["Model", "ForCTC", "ForAudioFrameClassification"])
@every_cell("values", [{"do_stable_layer_norm": True}, {"num_conv_pos_embeddings": 15}, {"do_stable_layer_norm": False}], ids=str)
def test_other_shapes_and_heads_stream(values: dict[str, Any], head: str) -> None:
    model, x = model_of(head=head, **values).double(), sound(20_000, dtype=torch.float64)
    torch.testing.assert_close(streamed(Stream(model), x, 997), whole(model, x), atol=1e-11, rtol=0)


ATTENTION = (WINDOW, CHUNKED, {"mechanism": "window", "window": 4, "layers": {"0": CHUNKED}})
FRAMES = (1, 7, 50, 200)


@pytest.mark.slow
@every_cell(
    ("chunk", "attention"),
    grid(
        [(frames * FRAME, attention) for frames in FRAMES for attention in ATTENTION],
        lambda chunk, attention: (FRAMES.index(chunk // FRAME) + ATTENTION.index(attention)) % 2,
    ),
    ids=str,
)
def test_the_bits_do_not_depend_on_the_pieces(chunk: int, attention: dict[str, Any]) -> None:
    model, x = model_of(attention=attention), sound(SAMPLES // 2 if chunk == FRAME else SAMPLES)
    stream, outs = Stream(model, chunk=chunk), []
    for size in (SAMPLES, 1 if chunk == 200 * FRAME else 8_191, 997):
        outs.append(streamed(stream, x[:, : 9_000 if size == 1 else SAMPLES], size))
        stream.reset()
    assert torch.equal(outs[0], outs[2])
    if chunk != 200 * FRAME:
        assert torch.equal(outs[0], outs[1])
    torch.testing.assert_close(outs[0], whole(model, x), atol=2e-5, rtol=0)


def test_the_encoder_of_a_transducer_streams() -> None:
    encoder = model_of("parakeet_tdt", "ForTDT").get_encoder()
    x = heard(encoder, 5).float()
    torch.testing.assert_close(streamed(Stream(encoder), x, 123), whole(encoder, x), atol=2e-5, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("attention", [{}, {"long_attention": CHUNKED}], ids=["its own windows", "chunked"])
def test_the_encoder_of_moonshine_streams(attention: dict[str, Any], tmp_path: Path) -> None:
    stock = moonshine.save(tmp_path).double()
    encoder = LongMoonshineStreamingModel.from_pretrained(tmp_path, **attention).get_encoder().eval().double()
    x, stream = sound(40_000 + 37, dtype=torch.float64), Stream(encoder)
    assert stream.stride == 320
    heard_rows = x[:, : len(x[0]) // 80 * 80]
    expected = whole(encoder, heard_rows)
    if not attention:
        with torch.no_grad():
            expected = stock.encoder(heard_rows, attention_mask=torch.ones_like(heard_rows).long()).last_hidden_state
    torch.testing.assert_close(streamed(stream, x, 1_234), expected, atol=1e-11, rtol=0)


@pytest.mark.thorough
def test_samples_one_at_a_time() -> None:
    model, x = model_of(), sound(2_000, rows=1)
    stream = Stream(model, chunk=FRAME)
    pieces = [stream.feed(sample[None]) for sample in x[0]]
    out = torch.cat([*pieces, stream.finish()], 1)
    assert torch.equal(out, streamed(Stream(model, chunk=FRAME), x, 2_000))


@every_cell("seconds", [0.05, 0.3, 1.0])
def test_sounds_shorter_than_what_is_looked_ahead(seconds: float) -> None:
    model, x = model_of(), sound(round(16_000 * seconds))
    stream = Stream(model, chunk=100 * FRAME)
    torch.testing.assert_close(streamed(stream, x, 300), whole(model, x), atol=2e-5, rtol=0)


def test_frames_leave_after_what_is_looked_ahead() -> None:
    model, x = model_of(num_conv_pos_embeddings=16), sound(rows=1)
    stream = Stream(model, chunk=FRAME)
    assert stream.lookahead == 7 + 2 * 3
    assert stream.delay == pytest.approx((13 * FRAME + 400) / 16_000)
    first = next(at for at in range(0, SAMPLES, FRAME) if stream.feed(x[:, at : at + FRAME]).shape[1])
    assert (first + FRAME) / 16_000 == pytest.approx(stream.delay, abs=FRAME / 16_000)
    assert Stream(model_of(attention=CHUNKED, num_conv_pos_embeddings=1)).lookahead == 5, "layers do not add up where chunks are the same"
    assert Stream(model_of(attention=CHUNKED)).chunk == 6 * FRAME


@pytest.mark.thorough
def test_memory_does_not_grow() -> None:
    stream, x = Stream(model_of()), sound(160_000)
    sizes = []
    for at in range(0, 160_000, 5_120):
        stream.feed(x[:, at : at + 5_120])
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in stream.state_dict().values()))
    assert len({*sizes[8:-1]}) == 1, "after the reach of the convolution of 128 frames"
    assert sizes[-2] < sizes[0] + 4 * 2 * SHAPE.width * (128 + 2 * 3 + 2 * 2 * (7 + 3))


@pytest.mark.thorough
@pytest.mark.parametrize("base", ["wav2vec2", "parakeet_ctc"])
def test_no_tensor_grows_with_the_stream(base: str) -> None:
    model = model_of(base)
    x, largest = heard(model, 16, rows=1).float(), []
    for length in (x.shape[1] // 2, x.shape[1]):
        stream = Stream(model)
        with Largest() as mode:
            for at in range(0, length, length // 100):
                stream.feed(x[:, at : min(length, at + length // 100)])
        largest.append(mode.elements)
    assert largest[0] == largest[1]


@pytest.mark.thorough
@pytest.mark.parametrize("attention", [WINDOW, CHUNKED], ids=["window", "chunked"])
def test_a_stopped_stream_goes_on(attention: dict[str, Any], tmp_path: Path) -> None:
    model, x = model_of(attention=attention), sound()
    expected = streamed(Stream(model), x, 3_333)
    for stop in range(0, SAMPLES, 3 * 3_333):
        first, second = Stream(model), Stream(copy.deepcopy(model))
        out = first.feed(x[:, :stop])
        first.save(tmp_path / "state.safetensors")
        second.load(tmp_path / "state.safetensors")
        assert second.seen == stop
        assert torch.equal(torch.cat([out, streamed(second, x, 3_333, stop)], 1), expected)


@pytest.mark.thorough
def test_streams_of_every_family_go_on_in_another_process(tmp_path: Path) -> None:
    streams, rest = {}, {}
    for base, head in STREAMED:
        if head.endswith("ForCTC") or not any(name.endswith("ForCTC") for name in FAMILIES[base].model_classes):
            model, folder = model_of(base, head), tmp_path / base
            x, stream = heard(model, 5).float(), Stream(model)
            out = stream.feed(x[:, : x.shape[1] // 2])
            model.save_pretrained(folder)
            stream.save(folder / "state.safetensors")
            torch.save(x, folder / "sound.pt")
            streams[base] = streamed(Stream(model), x, x.shape[1]), out
    done = run_fresh("-m", "tests.streaming.resume", *(tmp_path / base for base in streams), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for base, (expected, out) in streams.items():
        rest[base] = torch.load(tmp_path / base / "rest.pt")
        assert torch.equal(torch.cat([out, rest[base]], 1), expected), base


def test_every_family_of_sound_streams_or_says_why_not() -> None:
    rules = {name: family.rule for name, family in FAMILIES.items() if family.rule.reads == "sound"}
    assert all((rule.stream is None) == bool(rule.no_stream) for rule in rules.values())
    assert {name for name, rule in rules.items() if rule.no_stream} == {"sew", "whisper"}


@pytest.mark.thorough
def test_streams_of_one_model_do_not_meet() -> None:
    model, x = model_of(), sound()
    expected, outs = streamed(Stream(model), x, 997), {}
    streams = [Stream(model) for _ in range(4)]
    pieces = [torch.cat([s.feed(x[:, :20_000]) for s in [stream]]) for stream in streams]

    def go_on(number: int) -> None:
        outs[number] = torch.cat([pieces[number], streamed(streams[number], x, 997, 20_000)], 1)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert torch.equal(whole(model, x), whole(model, x)), "the model itself reads the whole meanwhile"
    for thread in threads:
        thread.join()
    assert all(torch.equal(outs[number], expected) for number in range(4))


def test_a_stock_model_with_mechanisms_streams() -> None:
    torch.manual_seed(0)
    model = AutoModelForCTC.from_config(small_audio_config("wav2vec2", SHAPE, feat_extract_norm="layer")).eval()
    with pytest.raises(StreamError, match="runs its base's attention, which sees the whole audio"):
        Stream(model)
    enable_long_attention(model, WINDOW)
    x = sound()
    torch.testing.assert_close(streamed(Stream(model), x, 5_000), whole(model, x), atol=1e-5, rtol=0)


def test_arrays_and_single_rows_are_read() -> None:
    model, x = model_of(), sound(9_000, rows=1)
    stream = Stream(model)
    out = torch.cat([stream.feed(np.asarray(x[0])), stream.finish()], 1)
    torch.testing.assert_close(out, whole(model, x), atol=1e-5, rtol=0)


class Block(nn.Module):
    """A layer of a Conformer without attention: a convolution with a residual around it."""

    def __init__(self, kernel: int, causal: bool = False) -> None:
        super().__init__()
        self.left, self.right = (kernel - 1, 0) if causal else ((kernel - 1) // 2, (kernel - 1) // 2)
        self.conv = nn.Conv1d(4, 4, kernel)

    def forward(self, hidden_states: Tensor) -> Tensor:
        padded = nn.functional.pad(hidden_states.transpose(1, 2), (self.left, self.right))
        return hidden_states + self.conv(padded).transpose(1, 2).tanh()


class Subsampled(nn.Module):
    """Rows of features through two padded convolutions with a stride of 2 each, and blocks."""

    def __init__(self, kernels: tuple[int, ...], causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.front = nn.ModuleList(nn.Conv1d(4, 4, 3, stride=2, padding=0 if causal else 1) for _ in range(2))
        self.layers = nn.ModuleList(Block(kernel, causal) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.front:
            x = x.transpose(1, 2)
            x = conv(nn.functional.pad(x, (2, 0)) if self.causal else x).transpose(1, 2).tanh()
        for layer in self.layers:
            x = layer(hidden_states=x)
        return x


@every_cell("causal", [False, True])
@every_cell("size", [1, 3, 4, 8, 50])
def test_padded_strides_and_convolutions_in_layers(size: int, causal: bool) -> None:
    torch.manual_seed(0)
    model, x = Subsampled((9, 5), causal).double(), torch.randn(2, 103, 4, dtype=torch.float64)
    inner = [Convolution.causal(3, 2)] * 2 if causal else [Convolution(3, 2, 1, 1)] * 2
    kernels = [Convolution.causal(k) if causal else Convolution.centred(k) for k in (9, 5)]
    stages = [Stage(None, inner), *(Stage(layer, [conv]) for layer, conv in zip(model.layers, kernels, strict=True))]
    for layer in model.layers:
        hook(layer)
    outs, token = [], RUNNING.set(None)
    with torch.no_grad():
        expected = model(x)
        for at in range(0, 103, size):
            ends = at + size >= 103
            RUNNING.set(Run(stages, ends))
            joined = stages[0].take(x[:, at : at + size], ends)
            if joined is None and not ends:
                continue
            try:
                outs.append(stages[-1].give(model(x[:, :9] if joined is None else joined)))
            except NothingFinal:
                continue
    RUNNING.reset(token)
    torch.testing.assert_close(torch.cat(outs, 1), expected, atol=1e-13, rtol=0)


def test_sections_count_as_convolutions_do() -> None:
    for kernel, stride, left, right in ((400, 320, 0, 0), (3, 2, 1, 1), (5, 2, 4, 0), (9, 1, 4, 4), (128, 1, 64, 63)):
        section = Convolution(kernel, stride, left, right)
        for seen in range(1, 2 * kernel + 9):
            padded = seen + left + right
            assert section.total(seen) == (0 if padded < kernel else (padded - kernel) // stride + 1)
            assert section.final(seen) == sum(1 for t in range(section.total(seen)) if stride * t - left + kernel <= seen)
    chain = Chain((Attention(Locality(5, 5, 6, by_block=True)), Convolution.centred(3)))
    assert [chain.final(seen) for seen in (5, 6, 11, 12)] == [0, 5, 5, 11]
    assert chain.first(14) == 6


@every_cell("chunk", [100, 321, 0, -320, True, 320.0, "320"])
def test_a_chunk_that_frames_do_not_divide_is_refused(chunk: Any) -> None:
    with pytest.raises(
        StreamError, match=r"^A chunk of .* samples is not a whole number of frames of 320 samples; for example chunk=\d+\.$"
    ):
        Stream(model_of(), chunk=chunk)


def test_pieces_out_of_order_are_refused() -> None:
    stream, x = Stream(model_of()), sound(5_000)
    stream.feed(x, start=0)
    with pytest.raises(StreamError, match="starts at sample 0 was fed before: the next sample is 5000"):
        stream.feed(x, start=0)
    with pytest.raises(StreamError, match="starts at sample 10000 leaves a gap: the next sample is 5000"):
        stream.feed(x, start=10_000)
    with pytest.raises(StreamError, match="the same rows from first to last"):
        stream.feed(x[:1])
    for wrong in (x.long(), x[None], torch.tensor(0.5)):
        with pytest.raises(AudioError, match=r"must be samples \(B, n\) or \(n,\) of floats"):
            stream.feed(wrong)
    with pytest.raises(AudioError, match=r"\(9000, 2\), which would be 9,000 sounds of 2 samples; mix the channels to one"):
        stream.feed(torch.randn(9000, 2))
    with pytest.raises(AudioError, match=r"is str, but must be an array of samples; read a file by hf_longattn\.data\.audio\.read_audio"):
        stream.feed("talk.wav")
    with pytest.raises(AudioError, match="starts after 5000 samples contains NaN or infinity"):
        stream.feed(x * float("nan"))
    assert stream.seen == 5_000
    stream.finish()
    for late in (lambda: stream.feed(x), stream.finish):
        with pytest.raises(StreamError, match="The stream is finished; begin a new one"):
            late()
    stream.reset()
    assert stream.feed(x).shape[0] == 2


def test_a_stream_too_short_for_a_frame_is_refused() -> None:
    stream = Stream(model_of())
    with pytest.raises(StreamError, match="ends after 0 samples, but a frame takes 400"):
        stream.finish()
    stream.feed(sound(399))
    with pytest.raises(StreamError, match="ends after 399 samples"):
        stream.finish()


def test_what_needs_the_whole_sound_is_refused() -> None:
    cases = [
        (model_of(feat_extract_norm="group"), "normalises every channel over the whole sound .*; use a checkpoint with a norm over"),
        (model_of(head="ForSequenceClassification"), "has no output for every frame, only one for the whole audio"),
        (model_of(attention={"mechanism": "full"}), "Mechanism 'full' .* looks at the whole sequence"),
        (model_of(attention={"mechanism": "longformer", "window": 8}), "With these options, mechanism 'longformer' has global tokens"),
        (model_of(add_adapter=True), "fewer last states than frames"),
        (
            model_of("parakeet_tdt", "ForTDT"),
            r"writes by a decoder, not by frames; stream its encoder, Stream\(model.get_encoder",
        ),
        (model_of("wav2vec2-conformer", feat_extract_norm="group"), "normalises every channel over the whole sound"),
        (model_of("wavlm", feat_extract_norm="group"), "normalises every channel over the whole sound"),
        (model_of("sew"), "LongSEWForCTC cannot read a stream: its published checkpoints normalise every channel over the whole sound"),
        (model_of("whisper", "Model"), "LongWhisperModel cannot read a stream: its encoder counts positions from the beginning"),
        (nn.Linear(2, 2), "Linear cannot read a stream; use an audio model"),
    ]
    for model, message in cases:
        with pytest.raises(StreamError, match=message):
            Stream(model)
    model = model_of()
    stream = Stream(model)
    model.train()
    with pytest.raises(StreamError, match=r"call model\.eval\(\) first"):
        stream.feed(sound())


def test_compiled_layers_are_refused() -> None:
    model = model_of()
    stream = Stream(model)
    for layer in model.base_model.encoder.layers:
        layer.compile(backend="eager")
    with pytest.raises(StreamError, match=r"of 3 layers of LongWav2Vec2ForCTC ran on the stream; pass the model without"):
        stream.feed(sound())


def test_an_optimised_model_streams() -> None:
    model, x = model_of(), sound()
    model.optimize_for_inference()
    torch.testing.assert_close(streamed(Stream(model), x, 2_222), whole(model, x), atol=2e-2, rtol=0)  # its linear layers are in bf16


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_streams(dtype: torch.dtype) -> None:
    model, x = model_of(), sound()
    expected, half = whole(model, x), model.to(dtype)
    out = streamed(Stream(half), x, 2_222)
    assert out.dtype == dtype
    error, of_one_pass = ((y.float() - expected).abs().mean() for y in (out, whole(half, x)))
    assert error < 1.5 * of_one_pass


def test_states_of_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    stream = Stream(model_of())
    stream.feed(sound())
    stream.save(file)
    for other, what in (
        (Stream(model_of(), chunk=FRAME), "chunk 5120, but this one has 320"),
        (Stream(model_of(attention=CHUNKED), chunk=16 * FRAME), "config"),
        (Stream(model_of().double()), "dtype 'torch.float32'"),
        (Stream(model_of("unispeech")), "model 'LongWav2Vec2ForCTC'"),
    ):
        with pytest.raises(StreamError, match=f"^The stream was saved with {what}"):
            other.load(file)
    for content in (b"", b"no tensors", None):
        path = tmp_path / "other"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StreamError, match="is not the saved state of a stream"):
            stream.load(path)
    with pytest.raises(StreamError, match="This is not the state of a stream of this model"):
        stream.load_state_dict({})
    state = stream.state_dict()
    with pytest.raises(StreamError, match=r"The state is damaged: '1\.hidden' has"):
        stream.load_state_dict({**state, "1.hidden": state["1.hidden"][:, 1:]})


def test_an_interrupted_stream_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of(), sound()
    stream = Stream(model)
    before = stream.state_dict()
    with monkeypatch.context() as patched:
        patched.setattr(model.lm_head, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stream.feed(x)
    for action in (lambda: stream.feed(x), stream.finish, stream.state_dict):
        with pytest.raises(StreamError, match=r"was interrupted while it computed; load a state that was saved before, or call reset\(\)"):
            action()
    stream.load_state_dict(before)
    assert torch.equal(streamed(stream, x, 997), streamed(Stream(model), x, 997))
