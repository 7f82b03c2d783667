"""An audio model over a stream: samples arrive in pieces, and frames are returned once no later sample can change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextvars import copy_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import AudioError, StreamError
from ..modeling.attach.attention_sites import mechanisms_on
from ..modeling.family.audio_rule import AudioRule
from ..modeling.family.config import attention_implementation
from ..modeling.family.definition import Family, known_family
from ..modeling.family.page_rule import PLAIN_TEXT
from ..modeling.family.stream_rule import StreamRule
from ..naming import BACKEND
from ..staging import staged_file
from .attention import check_like, check_next, locality_of
from .stages import HIDDEN, RUNNING, NothingFinal, Run, Stage, hook
from .tail import Tail

DEFAULT_FRAMES = 16
"""Frames per chunk, unless a mechanism such as ``chunked`` determines them."""
MOST_CHANNELS = 8
"""Maximum channels of a recording. An input of more rows, with 2 to this many samples each, is refused as (samples, channels)."""
FORMAT = "hf_longattn stream 1"
UNREAD_FIELDS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Config fields that do not affect frames, except the dtype, which is compared separately."""
WAITING, POSITIONS = "waiting", "positions"
"""Names of tensors in a state: the input after the last complete chunk, and the positions of all stages."""


class Stream:
    """An audio model over a live stream, with constant memory.

    The stream runs the model's own forward on one chunk at a time. Every layer buffers the keys and values, or the frames, that later
    frames need. A frame is computed again only while it waits for later frames, or while a convolution needs it. Frames equal those of one
    pass over the whole audio up to rounding. Bitwise, they do not depend on the sizes of the pieces, or on stopping and resuming.

    Args:
        model: a Long audio model in eval mode. Its mechanisms must attend to neighbours only (``window``, ``chunked``). If it has a head,
            the head must give an output for every frame (``ForCTC``, ``ForAudioFrameClassification``).
        chunk: samples (or rows of features) computed at a time, a multiple of :attr:`stride`. By default 16 frames, or the chunk size of
            the mechanism ``chunked``.
    Raises:
        StreamError: the model needs the whole audio, or ``chunk`` is not a multiple of the stride.
    """

    def __init__(self, model: Any, *, chunk: int | None = None) -> None:
        self.model, self._rule, self._stream_rule = model, *_rules(model)
        self._stages = _stages(model, self._rule, self._stream_rule)
        self.stride = self._stages[0].section.stride
        """Number of samples (or rows of features) from one frame to the next."""
        periods = [stage.local.period for stage in self._stages if stage.local is not None]
        self.chunk = self._check_chunk((max(periods) if max(periods) > 1 else DEFAULT_FRAMES) * self.stride if chunk is None else chunk)
        self._waiting = Tail(1)
        self.finished = self._interrupted = False
        self._empty = self._probe()
        for stage in self._stages[1:]:
            assert stage.module is not None
            hook(stage.module)

    @property
    def seen(self) -> int:
        """Number of samples (or rows of features) so far."""
        return self._waiting.stop

    @property
    def frames(self) -> int:
        """Number of frames returned so far."""
        return self._stages[-1].done

    @property
    def lookahead(self) -> int:
        """Maximum number of later frames that a frame depends on, through all layers."""
        seen, period, most = 0, max(stage.local.period for stage in self._stages if stage.local is not None), 0
        first = 2 * sum(stage.local.back + stage.local.ahead for stage in self._stages if stage.local is not None) // period * period
        for frame in range(first, first + period):
            seen = max(seen, frame)
            while self._final(seen) <= frame:
                seen += 1
            most = max(most, seen - frame - 1)
        return most

    def _final(self, seen: int) -> int:
        for stage in self._stages[1:]:
            seen = stage.section.final(seen)
        return seen

    @property
    def delay(self) -> float:
        """Maximum seconds of audio from the start of a frame until it is returned."""
        first = self._rule.length_of(self.model.config, 1)
        return float(self._rule.seconds(self.lookahead * self.stride + self.chunk - self.stride + first))

    def feed(self, sound: Tensor | np.ndarray, *, start: int | None = None) -> Tensor:
        """Add audio, and return the frames that have become final.

        Args:
            sound: the next samples ``(B, n)``, or ``(n,)`` for one row, or rows of features ``(B, n, F)``, as the model takes them; n ≥ 0.
            start: index of the first of these samples in the stream, checked against :attr:`seen`.
        Returns:
            ``(B, m, width)``: logits of the next m frames, or last hidden states if the model has no head; m may be 0.
        Raises:
            StreamError: the piece does not follow or match the previous one, or the stream is finished.
            AudioError: a wrong shape or dtype, or values that are not finite.
        """
        self._check_next(start)
        self._waiting.append(self._check_sound(sound))
        outs = []
        while self._waiting.stop - self._waiting.start >= self.chunk:
            first = self._waiting.start
            outs.append(self._step(self._waiting.between(first, first + self.chunk), ends=False))
            self._waiting.drop(first + self.chunk)
        return self._joined(outs)

    def finish(self) -> Tensor:
        """End the audio and return the remaining frames ``(B, m, width)``.

        Raises:
            StreamError: the stream is finished, or too short for one frame.
        """
        self._check_next(None)
        if self._waiting.tensor is None or self._rule.frames(self.model.config, self.seen) < 1:
            least = self._rule.length_of(self.model.config, 1)
            raise StreamError(f"The stream ends after {self.seen} {self._rule.unit}, but a frame takes {least}; feed more of it first.")
        out = self._step(self._waiting.tensor, ends=True)
        self._waiting.drop(self.seen)
        self.finished = True
        return self._joined([out])

    def reset(self) -> None:
        """Begin a new stream."""
        for stage in self._stages:
            stage.done = 0
            for tail in stage.tails.values():
                tail.load(None, 0)
        self._waiting.load(None, 0)
        self.finished = self._interrupted = False

    def _step(self, piece: Tensor, ends: bool) -> Tensor | None:
        """Run the model on the next input. Returns the new final outputs, or ``None`` if there are none."""
        self._interrupted = True
        out: Tensor | None = copy_context().run(self._run, piece, ends)
        self._interrupted = False
        return out

    @torch.no_grad()
    def _run(self, piece: Tensor, ends: bool) -> Tensor | None:
        run = Run(self._stages, ends)
        RUNNING.set(run)
        joined = self._stages[0].take(piece, ends)
        if joined is None and not ends:
            return None
        if joined is None:  # flush frames that the layers buffer; outputs for the silence are cut off
            joined = self._silence(piece)
        multiple = self._stream_rule.multiple(self.model.config)
        joined = joined[:, : joined.shape[1] // multiple * multiple]
        try:
            out = _of_frames(self.model(**{self._rule.input: joined}))
        except NothingFinal:
            return None
        if run.entered != len(self._stages) - 1:
            raise StreamError(
                f"{run.entered} of {len(self._stages) - 1} layers of {type(self.model).__name__} ran on the stream; pass the model without "
                "torch.compile."
            )
        return self._stages[-1].give(out)

    def _silence(self, like: Tensor) -> Tensor:
        """The shortest possible model input, all zeros, with batch size and features of ``like (B, n, …)``."""
        return like.new_zeros(len(like), self._rule.length_of(self.model.config, 1), *like.shape[2:])

    def _probe(self) -> Tensor:
        """An empty output ``(1, 0, width)``, in the model's output dtype.

        Raises:
            StreamError: the model does not give one output per frame.
        """
        config = self.model.config
        silence = self._rule.seeded(config, self._rule.seconds(self._rule.length_of(config, 3))).to(self.model.device)
        with torch.no_grad():
            out = _of_frames(self.model(**{self._rule.input: silence}))
        if out is None or out.dim() != 3 or out.shape[1] != 3:
            raise StreamError(
                f"{type(self.model).__name__} has no output for every frame, only one for the whole audio, so it cannot read a stream; use "
                "the model without a head, or with ForCTC or ForAudioFrameClassification."
            )
        return out[:, :0].clone()

    def _joined(self, outs: list[Tensor | None]) -> Tensor:
        parts = [out for out in outs if out is not None]
        rows = 1 if self._waiting.tensor is None else len(self._waiting.tensor)
        return torch.cat(parts, 1) if parts else self._empty.expand(rows, -1, -1).clone()

    def _check_next(self, start: int | None) -> None:
        self._check_complete()
        if self.model.training:
            raise StreamError("The model is in training mode, in which frames are random; call model.eval() first.")
        check_next(self.finished, start, self.seen, self._rule.unit.removesuffix("s").replace("rows of feature", "row"))

    def _check_sound(self, sound: Tensor | np.ndarray) -> Tensor:
        """Check a piece, and return it as a tensor with the model's axes, device and dtype."""
        try:
            piece = torch.as_tensor(sound)
        except (TypeError, ValueError, RuntimeError) as error:
            raise AudioError(
                f"A piece of the stream is {type(sound).__name__}, but must be an array of samples; read a file by "
                f"hf_longattn.data.audio.read_audio(file, {self._rule.sampling_rate})."
            ) from error
        piece = piece[None] if piece.dim() == 1 and self._rule.features is None else piece
        width = None if self._rule.features is None else self._rule.features(self.model.config)
        if piece.dim() != (2 if width is None else 3) or (width is not None and piece.shape[2] != width) or not piece.is_floating_point():
            axes = "samples (B, n) or (n,)" if width is None else f"features (B, n, {width})"
            raise AudioError(f"A piece of the stream is {tuple(piece.shape)} {piece.dtype}, but must be {axes} of floats.")
        if width is None and 1 < piece.shape[1] <= MOST_CHANNELS < len(piece):
            raise AudioError(
                f"A piece of the stream is {tuple(piece.shape)}, which would be {len(piece):,} sounds of {piece.shape[1]} samples; mix the "
                "channels to one, for example by samples.mean(1)."
            )
        if not bool(torch.isfinite(piece).all()):
            raise AudioError(
                f"The piece of the stream that starts after {self.seen} {self._rule.unit} contains NaN or infinity; "
                "replace these values by zeros."
            )
        piece = piece.to(self.model.device, self.model.dtype)
        check_like(piece, self._waiting.tensor, 1, self._rule.input)
        return piece

    def _check_chunk(self, chunk: int) -> int:
        unit, rest = self._rule.unit, chunk % self.stride if isinstance(chunk, int) else 1
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1 or rest:
            nearest = max(1, round(chunk / self.stride)) * self.stride if isinstance(chunk, int | float) else DEFAULT_FRAMES * self.stride
            raise StreamError(
                f"A chunk of {chunk!r} {unit} is not a whole number of frames of {self.stride} {unit}; for example chunk={nearest}."
            )
        return chunk

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors: those of the stages, and the input after the last complete chunk."""
        self._check_complete()
        rows = [[tail.start, tail.stop, stage.done] for stage in self._stages for tail in stage.tails.values()]
        position = [self._waiting.start, self._waiting.stop, int(self.finished)]
        tensors = {POSITIONS: torch.tensor([position, *rows])}
        for name, tail in self._tails().items():
            if tail.tensor is not None:
                tensors[name] = tail.tensor.contiguous()
        return tensors

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from the state of a stream with the same model and chunk.

        Raises:
            StreamError: the state does not fit this stream.
        """
        tails, positions = self._tails(), state.get(POSITIONS)
        if positions is None or positions.shape != (len(tails), 3) or positions.is_floating_point() or {*state} - {POSITIONS, *tails}:
            raise StreamError("This is not the state of a stream of this model; load it into a Stream of the model that it was saved with.")
        rows = dict(zip(tails, positions.tolist(), strict=True))
        for name, (start, stop, _) in rows.items():
            length = state[name].shape[tails[name].dim] if name in state else 0
            if length != stop - start:
                raise StreamError(f"The state is damaged: {name!r} has {length} tokens and should have {stop - start}; save it anew.")
        for name, tail in tails.items():
            tensor = state.get(name)
            tail.load(None if tensor is None else tensor.to(self.model.device, self.model.dtype), rows[name][0])
        for number, stage in enumerate(self._stages):
            stage.done = rows[f"{number}.{HIDDEN}"][2]
        self.finished, self._interrupted = bool(rows[WAITING][2]), False

    def save(self, file: str | Path) -> None:
        """Write the state to a safetensors file, with a description of the model and the chunk."""
        write_state(file, self.state_dict(), self.about())

    def load(self, file: str | Path) -> None:
        """Resume from a file that :meth:`save` wrote, in any process with the same weights.

        Raises:
            StreamError: the file is not a saved state, or was saved with another model or chunk.
        """
        self.load_state_dict(read_state(file, self.about()))

    def about(self) -> dict[str, Any]:
        """Settings that must match to resume: the model's class, its dtype, a hash of its config, and the chunk."""
        settings = _read_fields(self.model.config.to_dict())
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        return {"model": type(self.model).__name__, "config": digest[:16], "dtype": str(self.model.dtype), "chunk": self.chunk}

    @property
    def reads_samples(self) -> bool:
        """Whether the input is samples instead of rows of features."""
        return self._rule.features is None

    def _check_complete(self) -> None:
        if self._interrupted:
            raise StreamError("The stream was interrupted while it computed; load a state that was saved before, or call reset().")

    def _tails(self) -> dict[str, Tail]:
        """Name of a tensor in the state -> buffer."""
        of_stages = {f"{number}.{name}": tail for number, stage in enumerate(self._stages) for name, tail in stage.tails.items()}
        return {WAITING: self._waiting, **of_stages}


def write_state(file: str | Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a state to a safetensors file, with the description ``about`` of its stream."""
    with staged_file(Path(file)) as path:
        save_file({name: x.cpu() for name, x in state.items()}, path, {"format": FORMAT, "stream": json.dumps(about)})


def read_state(file: str | Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the tensors of a file that :func:`write_state` wrote.

    Raises:
        StreamError: the file is not a saved state, or its description differs from ``about``.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        saved = json.loads(metadata["stream"]) if metadata.get("format") == FORMAT else None
    except (SafetensorError, OSError, ValueError, KeyError):
        saved = None
    if not isinstance(saved, dict):
        raise StreamError(f"{str(file)!r} is not the saved state of a stream; give a file that save wrote.")
    for name, value in about.items():
        if saved.get(name) != value:
            raise StreamError(
                f"The stream was saved with {name} {saved.get(name)!r:.80}, but this one has {value!r:.80}; load it into a stream of the "
                "same model with the same chunk."
            )
    return state


def _read_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config that affect frames, with those of nested configs."""
    read = {name: value for name, value in fields.items() if name not in UNREAD_FIELDS}
    return {name: _read_fields(value) if isinstance(value, dict) else value for name, value in read.items()}


def _rules(model: Any) -> tuple[AudioRule, StreamRule]:
    """The model's rules for audio input and for streams. Raises :class:`StreamError` if the model supports no streams."""
    config, family = getattr(model, "config", None), _family(model)
    audio: Any = PLAIN_TEXT if family is None else family.rule
    if audio.no_stream:
        raise StreamError(f"{type(model).__name__} cannot read a stream: {audio.no_stream}.")
    if audio.stream is None:
        raise StreamError(
            f"{type(model).__name__} cannot read a stream; use an audio model that can, such as LongWav2Vec2ForCTC, or "
            "AttentionStream for a model of your own."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise StreamError(f"{type(model).__name__} writes by a decoder, not by frames; stream its encoder, Stream(model.get_encoder()).")
    if why := audio.stream.refusal(config):
        raise StreamError(f"{type(model).__name__} needs the whole audio: {why}.")
    length = audio.length(60)
    if audio.output_rows(config, length) != audio.frames(config, length):
        raise StreamError(f"{type(model).__name__} has fewer last states than frames (add_adapter); use a checkpoint without an adapter.")
    if attention_implementation(config) != BACKEND:
        raise StreamError(
            f"{type(model).__name__} runs its base's attention, which sees the whole audio; set its mechanisms to work by "
            f"model.set_attn_implementation({BACKEND!r})."
        )
    return audio, audio.stream


def _family(model: Any) -> Family | None:
    """The family of a Long model, or of a base model with mechanisms."""
    return getattr(model, "family", None) or known_family(getattr(model, "config", None))


def _stages(model: Any, audio: AudioRule, rule: StreamRule) -> list[Stage]:
    """Split a model into stages, from its input to its last layer."""
    family, config = _family(model), model.config
    base = model.encoder if family is not None and family.wraps_encoder and hasattr(model, "encoder") else model.base_model
    of_layers = rule.positions(config)
    positions = None if of_layers is None else (of_layers, base.get_submodule(of_layers.module))
    stages = [Stage(None, audio.front(config))]
    if rule.encoder is not None:
        name, sections = rule.encoder
        stages.append(Stage(base.get_submodule(name), sections(config)))
    for number, layer in enumerate(base.get_submodule(rule.layers)):
        stages.append(Stage(layer, rule.inside(config), locality_of(_mechanism(model, layer, number), causal=False), positions))
    return stages


def _mechanism(model: Any, layer: nn.Module, number: int) -> Any:
    for module in layer.modules():
        if mechanisms := mechanisms_on(module):
            return next(iter(mechanisms.values()))
    raise StreamError(
        f"Layer {number} of {type(model).__name__} has no mechanism, so its attention sees the whole audio; convert the checkpoint "
        "with --mechanism window or chunked, or call hf_longattn.enable_long_attention."
    )


def _of_frames(outputs: Any) -> Any:
    """The logits among a model's outputs, or else its last hidden state."""
    logits = getattr(outputs, "logits", None)
    return getattr(outputs, "last_hidden_state", None) if logits is None else logits
