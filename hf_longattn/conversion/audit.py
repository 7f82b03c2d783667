"""Audit how far the tokens of a running model reach: single tokens are replaced by others, and what changes is compared with the config.

A window that an engine, an export or a server dropped leaves no trace in shapes or speed of short inputs. It does here: an output that
no layer of the config lets a token reach must not change when that token does, bit for bit. The same holds the other way round for tokens
that a server has cut off: nothing changes where something should.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..engines.call import AttentionCall
from ..errors import CheckpointError, LengthError, OptionError, check_extra, checkpoint_errors, in_a_line, needs_extra
from ..mechanisms import Mechanism
from ..mechanisms.masked import MaskedMechanism
from ..mechanisms.registry import mechanism_from
from ..modeling.attention_sites import attention_sites
from ..modeling.config import LongConfig
from ..modeling.family import CAUSAL_LANGUAGE_MODELS
from ..modeling.generic import enable_long_attention, load_generic
from ..modeling.inference import evaluating
from ..modeling.sliding_window import FULL, SLIDING, own_windows
from ..modeling.token_globals import token_rule
from ..modeling.validation import known_length
from ..reading import check_name, is_generic, named_class, plain_names
from .export import LONG_CONFIG
from .flops import with_storage
from .model_loading import quiet_libraries
from .pooling import sentence_pooling
from .sources.folder import has_safetensors, read_config
from .sources.hub import fetch_model
from .text import load_tokenizer

DEFAULT_LENGTH, SHORTEST = 2048, 8
LONGEST = 32_768
"""Tokens; the audit compares N×N bits per layer."""
POOLED_PROBES = 16
REPLACEMENTS = 2
WORDS = 2000
LARGEST_ANSWER = 64 * 2**20
"""Bytes; an embedding has some kilobytes."""
ROWS = 512
"""Queries whose masks are computed at once."""
SPECIAL = ("pad", "bos", "eos", "sep", "cls", "mask", "unk", "decoder_start")


@dataclass(frozen=True)
class Declared:
    """What a config says of one layer.

    pairs: ``(N, N)`` bool, whether the output at a row's token may depend on a column's.
    certain: whether it does depend on all of them; not so where keys are chosen by their content.
    """

    name: str
    pairs: Tensor
    certain: bool


@dataclass(frozen=True)
class StageReach:
    """One layer, or the output, against the config.

    stage: "layer 1", "output" or "embedding".
    mechanism: what the config says; empty for what follows several layers.
    declared, measured: how many tokens back and ahead an output can depend on, of those tried, and did.
    beyond: how many outputs changed that must not.
    unreached: distances (from, to), negative ahead, at which outputs should have changed and none did.
    problem: one sentence; empty where model and config agree.
    """

    stage: str
    mechanism: str
    declared: tuple[int, int]
    measured: tuple[int, int]
    beyond: int
    unreached: tuple[tuple[int, int], ...]
    problem: str


@dataclass(frozen=True)
class ReachAudit:
    """A finished audit.

    probes: the positions whose tokens were replaced.
    changed, expected: ``(probes, stages, N)`` bool; N is 1 for a pooled embedding.
    noise: largest difference between two equal runs.
    note: what cannot be told from these runs, or "".
    """

    model: str
    subject: str
    length: int
    probes: tuple[int, ...]
    stages: tuple[StageReach, ...]
    noise: float
    note: str
    changed: Tensor
    expected: Tensor

    @property
    def agrees(self) -> bool:
        """Whether nothing was found that contradicts the config."""
        return not any(stage.problem for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        told = {"model": self.model, "subject": self.subject, "length": self.length, "probes": list(self.probes), "noise": self.noise}
        return {**told, "agrees": self.agrees, "note": self.note, "stages": [asdict(stage) for stage in self.stages]}


class Subject(Protocol):
    """What is audited.

    name: for messages.
    leading, trailing: special tokens that it adds by itself.
    """

    name: str
    leading: int
    trailing: int

    def run(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        """(stage, states) for ``ids (N,)``: states are ``(N, width)``, or ``(1, width)`` if pooled. First the layers' input, if known."""


EMBEDDINGS = "embeddings"


@quiet_libraries()
def audit_reach(
    model: str | Path | nn.Module,
    *,
    onnx: str | Path | None = None,
    url: str | None = None,
    length: int | None = None,
    tolerance: float = 0.0,
    attn_implementation: str | None = None,
    timeout: float = 60.0,
    revision: str | None = None,
    token: str | bool | None = None,
) -> ReachAudit:
    """Compare the measured reach of a model, an ONNX file or an embedding server with what the config of ``model`` says.

    Tokens at several positions are replaced, one at a time, and all outputs are compared with those of the original input: after every
    layer of a PyTorch model, of the graph's output, or of a server's embedding. No weights are needed for the latter two.

    Args:
        model: a checkpoint of transformers, long or not (a folder or a Hub repository id), or a model in memory.
        onnx: a graph that should compute the same as ``model``.
        url: an embedding server that should: the address of a route in the manner of text-embeddings-inference (``…/embed``) or OpenAI
            (``…/v1/embeddings``). ``model`` must have a tokenizer.
        length: tokens; the smaller of 2,048 and the model's maximum if not given, and the model's maximum for a server.
        tolerance: largest change that counts as none, relative to the largest change; 0 compares bits. The int8 graphs of
            :func:`export_checkpoint` need some 0.05, since a scale depends on all tokens; then only a reach that is too wide is found.
        attn_implementation: of transformers, instead of the checkpoint's.
        timeout: seconds to wait for each answer of the server.
        revision, token: of the Hub repository.
    Returns:
        The audit; ``audit.agrees`` is the verdict.
    Raises:
        LengthError: the length is longer than the model's, or not positive.
        OptionError: contradicting arguments, or a graph or server that cannot be asked.
        CheckpointError: the model or its tokenizer cannot be loaded.
    """
    if onnx is not None and url is not None:
        raise OptionError("An audit looks at an ONNX file or at a server, not at both; leave out --onnx or --url.")
    if not 0 <= tolerance < 1:
        raise OptionError(f"tolerance is {tolerance}, but it is a share of the largest change: from 0 to less than 1, for example 0.01.")
    if not timeout > 0:
        raise OptionError(f"timeout is {timeout:g} seconds, but a server needs more than 0 to answer, for example 60.")
    in_memory = isinstance(model, nn.Module)
    if attn_implementation is not None and (in_memory or onnx is not None or url is not None):
        raise OptionError(
            "An attention implementation is chosen when a checkpoint is loaded, but here none is; leave --attn-implementation out."
        )
    if onnx is not None:
        check_extra("onnx", "onnxruntime")
    weights = onnx is None and url is None
    if isinstance(model, nn.Module):
        loaded, config = model, model.config
        name = str(getattr(config, "name_or_path", "")) or type(model).__name__
        folder = Path(name) if Path(name).is_dir() else None
    else:
        name = str(model)
        folder = _folder(name, weights, revision, token)
        loaded, config = _opened(folder, name, weights, attn_implementation)
    tokenizer = None if folder is None else load_tokenizer(folder)
    longest = known_length(config, tokenizer)
    most = min(longest or LONGEST, LONGEST)
    wanted = (most if url is not None else min(most, DEFAULT_LENGTH)) if length is None else length
    if not SHORTEST <= wanted <= most:
        raise LengthError(f"An audit takes {SHORTEST} to {most:,} tokens of {name!r}, not {wanted:,}; give --length {most}.")
    if url is not None:
        words = single_words(tokenizer, name)
        subject: Subject = Server(url, tokenizer, timeout)
        wanted -= subject.leading + subject.trailing
    else:
        words = _ordinary_ids(config, tokenizer)
        subject = Graph(Path(onnx)) if onnx is not None else Layers(loaded)
    generator = torch.Generator().manual_seed(0)
    ids = words[torch.randint(len(words), (wanted,), generator=generator)]
    measured = _measure(subject, ids, words, generator, tolerance)
    declared = declared_layers(config, ids, subject.leading, subject.trailing)
    return _compare(name, subject, measured, declared, _pooled_rows(folder) if url is not None else None, exact=tolerance == 0)


def _folder(name: str, weights: bool, revision: str | None, token: str | bool | None) -> Path:
    """The folder of a checkpoint; a repository of the Hub is downloaded into its cache, with or without its weights."""
    check_name(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{name!r} {what}; give the folder of a checkpoint, or a Hub repository id.")
    return fetch_model(name, revision, token, weights=weights)


def _opened(folder: Path, name: str, weights: bool, attention: str | None) -> tuple[Any, Any]:
    """The model in fp32 (``None`` without ``weights``), and its config."""
    from transformers import AutoConfig, AutoModel

    values = read_config(folder)
    if weights and not has_safetensors(folder):
        raise CheckpointError(
            f"{name!r} has no weights in safetensors files, and no others are loaded; load it with transformers and write it again with "
            "save_pretrained, or give a converted model."
        )
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if attention is not None:
        source["attn_implementation"] = attention
    load = load_generic if is_generic(values) else (_quantised_class(values) or AutoModel).from_pretrained
    with checkpoint_errors(f"{name!r} cannot be loaded"):
        if not weights:
            if is_generic(values):
                return None, AutoConfig.for_model(**plain_names(values))
            exported = folder / LONG_CONFIG  # a graph's folder, whose config.json is for programs that know the base only
            return None, AutoConfig.from_pretrained(exported if exported.is_file() else folder, **source)
        try:
            loaded: Any = load(folder, dtype=torch.float32, use_safetensors=True, **source)
        except Exception as error:
            if not values.get("quantization_config"):
                raise
            raise CheckpointError(
                f"{name!r} holds quantised weights, which transformers cannot load here; audit the checkpoint that it was made from."
            ) from error
    return loaded, loaded.config


def _quantised_class(values: Mapping[str, Any]) -> Any | None:
    """The class that a model with quantised weights was saved with; transformers cannot read the base out of a model with a head."""
    import transformers

    import hf_longattn

    if not values.get("quantization_config"):
        return None
    name = named_class(values, "AutoModel")
    found: Any = getattr(hf_longattn if name.startswith("Long") and hasattr(hf_longattn, name) else transformers, name, None)
    return found if hasattr(found, "from_pretrained") else None


def _special_ids(config: Any, tokenizer: Any | None) -> set[int]:
    own = getattr(tokenizer, "all_special_ids", None) or []
    return {one for one in (*own, *(getattr(config, f"{name}_token_id", None) for name in SPECIAL)) if isinstance(one, int)}


def _ordinary_ids(config: Any, tokenizer: Any | None) -> Tensor:
    """Every id but special ones."""
    special = _special_ids(config, tokenizer)
    return torch.tensor([one for one in range(config.get_text_config().vocab_size) if one not in special])


def single_words(tokenizer: Any | None, name: str) -> Tensor:
    """Ids of tokens that come back when they are written as words between spaces."""
    if tokenizer is None:
        raise OptionError(f"{name!r} has no tokenizer, which auditing a server needs; give the model that the server runs.")
    special, found = set(tokenizer.all_special_ids), []
    for one in range(len(tokenizer)):
        word = "" if one in special else tokenizer.decode([one]).strip()
        if word.isascii() and word.isalpha() and len(word) > 2 and word.islower():
            read = tokenizer(f"the {word} the", add_special_tokens=False)["input_ids"]
            if len(read) == 3 and read[1] == one:
                found.append(one)
        if len(found) == WORDS:
            break
    if len(found) < 2:
        raise OptionError(f"The tokenizer of {name!r} writes no word as one token, so a server cannot be audited token by token.")
    return torch.tensor(found)


def _pooled_rows(folder: Path | None) -> list[int] | None:
    """The rows that an embedding is pooled from, by sentence-transformers' modules beside the model; ``None`` for all, or without them."""
    pooling = None if folder is None else sentence_pooling(folder)
    rows = {"cls": 0, "lasttoken": -1}
    return [rows[mode] for mode in pooling.modes] if pooling is not None and set(pooling.modes) <= set(rows) else None


# ---- what the config says


def declared_layers(config: Any, ids: Tensor, leading: int = 0, trailing: int = 0) -> list[Declared]:
    """What every layer of the text's stack may see of ``ids (N,)``: an encoder's, or a decoder's if there is no encoder.

    leading, trailing: how many special tokens come before and after them; they are counted, but not distinguished.
    """
    length = leading + len(ids) + trailing
    ours = getattr(config, "long_attention", None) is not None
    found = _long_layers(config) if ours else _stock_layers(config)
    rule = None
    if ours and (mechanisms := {id(one): one for one, _ in found if one is not None}):
        holder: Any = nn.ModuleList(mechanisms.values())
        holder.config = config
        rule = token_rule(holder)
    row = torch.cat([ids.new_full((leading,), -1), ids, ids.new_full((trailing,), -1)])[None]
    chosen = None if rule is None else rule.mask(row, torch.ones_like(row, dtype=torch.bool))
    kept: dict[object, Declared] = {}
    layers = []
    for mechanism, causal in found:
        if mechanism is None:
            key: object = causal
            make = partial(_anything, length, causal)
        else:
            seeded = getattr(mechanism.options, "seed", None) is not None  # layers draw differently
            key = type(mechanism), mechanism.options, mechanism.layer if seeded else 0, causal
            make = partial(_visible, mechanism, length, causal, chosen)
        if key not in kept:
            kept[key] = make()
        layers.append(kept[key])
    widened = getattr(config, "conv_kernel_size", 0) // 2  # DeBERTa-v2's convolution beside its first layer
    if widened and layers:
        near = (torch.arange(length)[:, None] - torch.arange(length)).abs() <= widened
        layers[0] = Declared(layers[0].name, layers[0].pairs | near, layers[0].certain)
    return layers


def _long_layers(config: Any) -> list[tuple[Mechanism | None, bool]]:
    """A mechanism with storage, and whether it is causal, for every layer."""
    layers: list[tuple[Mechanism | None, bool]] = []
    for site in _text_sites(config):
        mechanism = site.mechanism
        known = isinstance(mechanism, Mechanism) and mechanism.recursion is None
        layers.append((with_storage(mechanism) if known else None, site.decoding))
    return layers


def _stock_layers(config: Any) -> list[tuple[Mechanism | None, bool]]:
    """The same for a model that is not ours, by what transformers' configs say of windows."""
    sites = _text_sites(config)
    named = (getattr(config, "architectures", None) or [""])[0]
    causal = [site.decoding for site in sites] or [named.endswith(CAUSAL_LANGUAGE_MODELS)] * config.num_hidden_layers
    kinds = config.__dict__.get("layer_types") or []
    local = getattr(config, "encoder_attention_type", None)  # LongT5's
    if getattr(config, "attention_type", None) == "block_sparse" or set(kinds) - {FULL, SLIDING} or local == "transient-global":
        return [(None, one) for one in causal]
    widths = getattr(config, "attention_window", None)
    if local == "local":
        widths = 2 * config.local_radius
    if isinstance(widths, int):
        widths = [widths] * len(causal)
    windows: Sequence[int | None] = widths or own_windows(config)
    build = partial(mechanism_from, num_heads=1, head_dim=8, max_length=LONGEST)
    return [
        (build("full" if width is None else "window", {} if width is None else {"window": width}), one)
        for width, one in zip(windows, causal, strict=False)
    ]


def _text_sites(config: Any) -> list[Any]:
    """The self-attention of the encoder, or of the only stack, in a model without storage."""
    from transformers import AutoModel

    with torch.device("meta"):
        try:
            skeleton = AutoModel.from_config(config)
            if getattr(config, "long_attention", None) is not None and not isinstance(config, LongConfig):
                enable_long_attention(skeleton, config.long_attention)
        except (ValueError, RuntimeError) as error:
            raise CheckpointError(f"No model can be built from this config: {error}") from error
    sites = [site for site in attention_sites(skeleton) if not site.cross]
    return [site for site in sites if not site.decoding] if config.is_encoder_decoder else sites


def _anything(length: int, causal: bool) -> Declared:
    every = torch.ones(length, length, dtype=torch.bool)
    return Declared("not told by the config", every.tril() if causal else every, certain=False)


@torch.no_grad()
def _visible(mechanism: Mechanism, length: int, causal: bool, chosen: Tensor | None) -> Declared:
    """The pairs of a mechanism: those of its mask if this is its whole definition, else those within its locality."""
    written = " ".join([mechanism.name, *mechanism.options.changed()])
    pairs = torch.ones(length, length, dtype=torch.bool)
    call = AttentionCall(causal=causal, global_mask=chosen if mechanism.takes_globals else None)
    tokens = mechanism.resolve_globals(torch.empty(1, 1, length, 1), call)
    masked = isinstance(mechanism, MaskedMechanism) and mechanism.mask_is_reach
    if isinstance(mechanism, MaskedMechanism) and masked:
        mod = mechanism.mask_mod(causal, tokens)
        b, h = torch.zeros(1, 1, 1, 1, dtype=torch.long), torch.arange(mechanism.num_heads).view(1, -1, 1, 1)
        columns = torch.arange(length).view(1, 1, 1, -1)
        for start in range(0, length, ROWS):
            rows = torch.arange(start, min(start + ROWS, length)).view(1, 1, -1, 1)
            found = mod(b, h, rows, columns)
            pairs[start : start + rows.numel()] = found.expand(1, -1, rows.numel(), length)[0].any(0)
    elif (local := mechanism.locality(causal)) is not None and tokens is None:
        distance = torch.arange(length)[:, None] - torch.arange(length)
        pairs = (distance <= local.back) & (-distance <= local.ahead)
    return Declared(written, pairs.tril() if causal else pairs, masked)


# ---- what runs


class Layers:
    """A PyTorch model: its hidden states after every layer, of the encoder where there are two stacks."""

    leading = trailing = 0

    def __init__(self, model: nn.Module) -> None:
        self.name = type(model).__name__
        base: Any = getattr(model, "base_model", model)
        self.model: Any = base.get_encoder() if base.config.is_encoder_decoder else base

    @torch.no_grad()
    def run(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        device = next(self.model.parameters()).device
        row = ids[None].to(device)
        with evaluating(self.model):
            found = self.model(input_ids=row, attention_mask=torch.ones_like(row), output_hidden_states=True, return_dict=True)
        states = found.hidden_states
        if states is None or states[0].shape[-2] != len(ids):
            raise OptionError(
                f"{self.name} does not return hidden states of each of its {len(ids):,} tokens, so its layers cannot be audited; "
                "audit an export of it instead: --onnx FILE."
            )
        names = [EMBEDDINGS, *(f"layer {number}" for number in range(1, len(states)))]
        return [(name, state[0].float().cpu()) for name, state in zip(names, states, strict=True)]


class Graph:
    """An ONNX file: its first output with a row for each token, else its first pooled one."""

    leading = trailing = 0

    def __init__(self, file: Path) -> None:
        with needs_extra("onnx"):
            import onnxruntime
        file = file / "model.onnx" if file.is_dir() else file
        if not file.is_file():
            raise OptionError(f"{str(file)!r} does not exist; give an ONNX file, or a folder with model.onnx.")
        self.name = str(file)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no public class of errors
            raise OptionError(f"onnxruntime cannot load {str(file)!r}: {' '.join(str(error).split())[:300]}") from error
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        unknown = sorted(set(self.inputs) - {"input_ids", "attention_mask", "token_type_ids", "position_ids"})
        if unknown or "input_ids" not in self.inputs:
            raise OptionError(
                f"{str(file)!r} takes {', '.join(self.inputs) or 'nothing'}, but an audit gives input_ids, and attention_mask, "
                "token_type_ids or position_ids where they are asked for; export the model with these inputs only."
            )
        shape = self.inputs["input_ids"].shape
        self.length = shape[1] if len(shape) == 2 and isinstance(shape[1], int) else None

    def run(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        if self.length not in (None, len(ids)):
            raise OptionError(f"{self.name!r} takes inputs of exactly {self.length:,} tokens; give --length {self.length}.")
        row = ids[None]
        every = {"input_ids": row, "attention_mask": torch.ones_like(row), "token_type_ids": torch.zeros_like(row)}
        every["position_ids"] = torch.arange(len(ids))[None]
        types = {"tensor(int32)": torch.int32, "tensor(float)": torch.float32, "tensor(bool)": torch.bool}
        given = {name: every[name].to(types.get(one.type, torch.int64)).numpy() for name, one in self.inputs.items()}
        try:
            found = self.session.run(None, given)
        except Exception as error:
            raise OptionError(
                f"{self.name!r} does not run with {len(ids):,} tokens of the model's vocabulary; is it a graph of this model? "
                f"onnxruntime says: {in_a_line(error)}."
            ) from error
        tensors = [torch.from_numpy(one).float() for one in found if one.ndim in (2, 3)]
        by_token = next((one[0] for one in tensors if one.ndim == 3 and one.shape[1] == len(ids)), None)
        if by_token is not None:
            return [("output", by_token)]
        by_number = next((one.t() for one in tensors if one.ndim == 2 and one.shape == (1, len(ids)) != (1, 1)), None)
        if by_number is not None:
            return [("output", by_number)]
        pooled = next((one for one in tensors if one.ndim == 2), None)
        if pooled is None:
            raise OptionError(f"{self.name!r} has no output (batch, tokens, width) or (batch, width) to audit.")
        return [("embedding", pooled)]


class Server:
    """An embedding server; texts are words of one token each."""

    def __init__(self, url: str, tokenizer: Any, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise OptionError(f"{url!r} is no address of a server; give one like http://localhost:8080/embed.")
        self.name, self.url, self.tokenizer, self.timeout = url, url, tokenizer, timeout
        self.field = "inputs" if url.rstrip("/").endswith("/embed") else "input"
        word = int(single_words(tokenizer, "the model")[0])
        row = tokenizer(tokenizer.decode([word]).strip())["input_ids"]
        self.leading = row.index(word)
        self.trailing = len(row) - 1 - self.leading

    def run(self, ids: Tensor) -> list[tuple[str, Tensor]]:
        text = " ".join(self.tokenizer.decode([one]).strip() for one in ids.tolist())
        body = json.dumps({self.field: [text], "model": "audit"} if self.field == "input" else {self.field: [text]}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        try:
            answer = self._answer(request)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(500).decode("utf-8", "replace").split())
            hint = "; give a smaller --length" if error.code in (400, 413, 422) else ""
            raise OptionError(f"{self.url} answers {error.code} to {len(ids):,} tokens: {said[:300]}{hint}.") from error
        except TimeoutError as error:
            raise OptionError(
                f"{self.url} does not answer {len(ids):,} tokens within {self.timeout:g} seconds; give a larger --timeout, or a smaller "
                "--length."
            ) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise OptionError(
                f"{self.url} does not answer: {in_a_line(error)}; is the server running, and is this the route of its embeddings?"
            ) from error
        expected = "expected a list of lists of numbers, as routes called /embed or /v1/embeddings return"
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{self.url} does not answer with JSON ({in_a_line(error)}); {expected}.") from error
        try:
            vectors = found if isinstance(found, list) else found["data"] if "data" in found else found["embeddings"]
            rows = [one["embedding"] if isinstance(one, dict) else one for one in vectors]
            embedded = torch.tensor(rows, dtype=torch.float64)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise OptionError(f"{self.url} answers with something else than embeddings; {expected}.") from error
        if len(embedded) != 1:
            raise OptionError(f"{self.url} answers with {len(embedded)} embeddings of one text; is this the route of its embeddings?")
        if embedded.ndim != 2 or not embedded.shape[1]:
            shape = "×".join(map(str, embedded.shape[1:])) or "a single number"
            raise OptionError(f"{self.url} answers with {shape} for a text, not with one vector; {expected}.")
        return [("embedding", embedded)]

    def _answer(self, request: urllib.request.Request) -> bytes:
        """What the server sends, all of it before the time is over.

        Raises:
            TimeoutError: it is not.
            OSError, ValueError, HTTPException: no connection, not HTTP, or an endless answer.
        """
        until, parts, size = time.monotonic() + self.timeout, [], 0
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                while part := answer.read1(2**16):
                    parts.append(part)
                    size += len(part)
                    if time.monotonic() > until:
                        raise TimeoutError
                    if size > LARGEST_ANSWER:
                        raise ValueError(f"the answer has more than {LARGEST_ANSWER / 1e6:,.0f} MB")
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise error.reason from error
            raise
        return b"".join(parts)


# ---- comparison


@dataclass(frozen=True)
class Measured:
    """Which outputs changed: ``changed (probes, stages, N or 1)``, the stages' names, and where the layers' input changed, if known."""

    probes: tuple[int, ...]
    stages: tuple[str, ...]
    changed: Tensor
    begins: Tensor | None
    noise: float


def _measure(subject: Subject, ids: Tensor, words: Tensor, generator: torch.Generator, tolerance: float) -> Measured:
    def run(tokens: Tensor) -> list[tuple[str, Tensor]]:
        found = subject.run(tokens)
        for stage, state in found:
            if not state.isfinite().all():
                raise OptionError(
                    f"{subject.name} returns NaN or infinite values ({stage}), in which no change can be seen; fix the model first."
                )
            known = sizes.setdefault(stage, state.shape[-1])
            if state.shape[-1] != known:
                raise OptionError(f"{subject.name} returns {known:,} numbers for one input and {state.shape[-1]:,} for another ({stage}).")
        return found

    sizes: dict[str, int] = {}
    original = run(ids)
    again = run(ids)
    noise = [float((one - other).abs().max()) for (_, one), (_, other) in zip(original, again, strict=True)]
    pooled = original[-1][1].shape[0] == 1

    def differences(position: int) -> list[Tensor]:
        largest = [torch.zeros(state.shape[0], dtype=state.dtype) for _, state in original]
        for _ in range(REPLACEMENTS):
            changed = ids.clone()
            while bool(changed[position] == ids[position]):
                changed[position] = words[torch.randint(len(words), (1,), generator=generator)]
            for stage, (_, state) in enumerate(run(changed)):
                largest[stage] = torch.maximum(largest[stage], (state - original[stage][1]).abs().amax(-1))
        return largest

    def of_bits(found: list[Tensor], scale: list[float]) -> list[Tensor]:
        limits = [max(4 * one, tolerance * most) for one, most in zip(noise, scale, strict=True)]
        return [one > limit for one, limit in zip(found, limits, strict=True)]

    length = len(ids)
    probes = [int((number + 0.5) * length / POOLED_PROBES) for number in range(POOLED_PROBES)] if pooled else _spread(length)
    found = [differences(position) for position in probes]
    scale = [max(float(one[stage].max()) for one in found) for stage in range(len(original))]
    bits = [of_bits(one, scale) for one in found]
    if pooled:
        reached = {position: bool(one[-1].any()) for position, one in zip(probes, bits, strict=True)}
        while (position := _next_end(reached, length)) is not None:
            probes.append(position)
            bits.append(of_bits(differences(position), scale))
            reached[position] = bool(bits[-1][-1].any())
    order = sorted(range(len(probes)), key=lambda at: probes[at])
    stacked = torch.stack([torch.stack(bits[at]) for at in order])
    begins = original[0][0] == EMBEDDINGS
    names = tuple(name for name, _ in original)
    return Measured(
        tuple(probes[at] for at in order), names[begins:], stacked[:, int(begins) :], stacked[:, 0] if begins else None, max(noise)
    )


def _spread(length: int) -> list[int]:
    """Positions near both ends, and in the middle."""
    return sorted({length // 8, length // 2, length - 1 - length // 8})


def _next_end(reached: dict[int, bool], length: int) -> int | None:
    """The next position to try: the last one, then by halves between the last token that counts and the first after it that does not."""
    if length - 1 not in reached:
        return length - 1
    last = max((position for position, one in reached.items() if one), default=-1)
    after = min((position for position in reached if position > last), default=length)
    return (last + after) // 2 if after < length and after - last > 1 else None


def _compare(
    name: str, subject: Subject, measured: Measured, declared: list[Declared], rows: Sequence[int] | None, exact: bool
) -> ReachAudit:
    if not measured.changed.any():
        raise OptionError(f"{subject.name} returns the same for every input, so its reach cannot be measured.")
    layered = measured.begins is not None
    if layered and len(declared) != len(measured.stages):  # stages that are no layers of attention
        declared = [_anything(measured.changed.shape[-1], causal=False)] * len(measured.stages)
    length = declared[0].pairs.shape[0]
    expected = []
    for number, position in enumerate(measured.probes):
        if layered:
            assert measured.begins is not None
            before = [measured.begins[number], *measured.changed[number, :-1]]
            expected.append(torch.stack([_spread_by(one, state) for one, state in zip(declared, before, strict=True)]))
        else:
            state = torch.zeros(length, dtype=torch.bool)
            state[position + subject.leading] = True
            for one in declared:
                state = _spread_by(one, state)
            if measured.changed.shape[-1] == 1:
                state = (state if rows is None else state[list(rows)]).any(keepdim=True)
            expected.append(state[None])
    wanted = torch.stack(expected)
    stages = []
    for number, stage in enumerate(measured.stages):
        layer = declared[number] if layered else None
        certain = layer.certain if layer else all(one.certain for one in declared)
        certain = certain and (exact or measured.changed.shape[-1] == 1)  # far changes within reach are smaller than a tolerance
        stages.append(_verdict(stage, layer.name if layer else "", certain, measured, measured.changed[:, number], wanted[:, number]))
    open_note = ""
    if not layered and bool(wanted.all()):
        pooled = measured.changed.shape[-1] == 1
        open_note = (
            "By the config, every token tried reaches the embedding, so this tells inputs that are cut off, but not a dropped window; the "
            "layers of the model itself do, or a graph with an output for each token."
            if pooled
            else "Through all layers, the config lets every token tried reach every output at this length, so a dropped window cannot be "
            "told here; a longer input may tell, or the layers of the model itself."
        )
    elif not all(one.certain for one in declared):
        open_note = "Where keys are chosen by their content, or the config does not tell them, only outputs out of all reach can disagree."
    elif not exact and measured.changed.shape[-1] > 1:
        open_note = "Changes within reach may be smaller than the tolerance, so only outputs out of reach can disagree."
    return ReachAudit(name, subject.name, length, measured.probes, tuple(stages), measured.noise, open_note, measured.changed, wanted)


def _spread_by(layer: Declared, state: Tensor) -> Tensor:
    """Where a layer's output may change if its input changed at ``state (N,)``."""
    return state | layer.pairs[:, state].any(-1)


def _verdict(stage: str, mechanism: str, certain: bool, measured: Measured, changed: Tensor, expected: Tensor) -> StageReach:
    pooled = changed.shape[-1] == 1
    beyond = changed & ~expected
    problem = ""
    unreached: tuple[tuple[int, int], ...] = ()
    if pooled:
        lost = [
            position for position, one, wanted in zip(measured.probes, changed, expected, strict=True) if bool(wanted) and not bool(one)
        ]
        if beyond.any():
            first = measured.probes[int(beyond.any(-1).nonzero()[0])]
            problem = f"token {first:,} changes the embedding, which no layer of the config lets it reach"
        elif lost and certain:
            kept = [position for position, one in zip(measured.probes, changed, strict=True) if bool(one)]
            cut = min(lost) > max(kept)
            problem = (
                f"no token from {min(lost):,} on changes the embedding: the input is cut off"
                if cut
                else f"tokens {', '.join(f'{one:,}' for one in lost[:4])} do not change the embedding"
            )
        return StageReach(stage, mechanism, (0, 0), (0, 0), int(beyond.sum()), (), problem)
    distance = torch.arange(changed.shape[-1]) - torch.tensor(measured.probes)[:, None]
    if certain:
        unreached = tuple(_empty_ranges(distance, changed, expected))
    if beyond.any():
        probe, place = divmod(int((beyond * distance.abs()).argmax()), changed.shape[-1])
        told = f"token {measured.probes[probe]:,} changes the output at {place:,}, which the config keeps apart"
        problem = f"{told} ({int(beyond.sum()):,} such outputs)"
    elif unreached:
        problem = "nothing changes at the distances " + ", ".join(f"{low:,} to {high:,}" for low, high in unreached)
    return StageReach(stage, mechanism, _furthest(distance, expected), _furthest(distance, changed), int(beyond.sum()), unreached, problem)


def _furthest(distance: Tensor, bits: Tensor) -> tuple[int, int]:
    """How far back and ahead an output looks: outputs after the token look back."""
    found = distance[bits]
    return (int(found.max().clamp(min=0)), int((-found).max().clamp(min=0))) if found.numel() else (0, 0)


def _empty_ranges(distance: Tensor, changed: Tensor, expected: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of distances, doubling, in which an output should have changed for some probe, and none did for any."""
    most, low = int(distance.abs().max()), 1
    while low <= most:
        for sign in (1, -1):
            inside = (distance * sign >= low) & (distance * sign < 2 * low) & expected
            if inside.any() and not (changed & inside).any():
                seen = distance[inside]
                yield (int(seen.min()), int(seen.max()))
        low *= 2
