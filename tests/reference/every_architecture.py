"""Every architecture of transformers, small and random: ``attn_implementation="longattn"`` against ``"eager"`` in
float64.

    python -m tests.reference.every_architecture --store            the table of docs/compatibility.md
    python -m tests.reference.every_architecture gemma3_text bert   these, printed

Windows are of 4 keys and texts of 24 tokens, so that a window that is left out shows. A difference of less than
:data:`TOLERANCE` counts as equal. :func:`compare` says what each entry of the table has.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import inspect
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import Generator, Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedConfig, PreTrainedModel, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_longattn import unpad
from hf_longattn.errors import LongAttentionError
from hf_longattn.memory.decode_cache import CACHE
from scripts.dev import RESULTS
from scripts.dev.tools.every_config import (
    TOKENS,
    VOCABULARY,
    model_class,
    model_types,
    other_inputs,
    small_config,
    windowless,
)

STORED = RESULTS / "architectures.json"
TOLERANCE = 1e-9
LARGEST = 20_000_000
"""Maximum number of parameters."""
DECODER_TOKENS, PADDED = 12, 7
REFERENCES: dict[str, str | None] = {
    **dict.fromkeys(("nemotron_asr_streaming_encoder", "nemotron_asr_streaming", "nemotron3_5_asr"), "sdpa"),
    **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), None),
}
"""Model types whose eager attention mistakes the dtype of a mask, a fault of transformers -> what is right. ``None``
is the default."""
PADDING_SEEN = ("unlimited_ocr", "unlimited_ocr_text")
"""Model types whose masks show padding when the window moves, a fault of transformers. Padded decoding of these is not
compared."""
NOT_RUN = {
    "blt_global_transformer": "called by itself it has no mask",
    "vits": "its random weights make a minute of sound",
}
"""Model types that are not compared -> why."""
Mode = partial[dict[str, Tensor]]
"""One way to call a model, and its outputs by name."""


# The ways to call a model


def forward(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return _tensors("", model(**inputs))


def _tensors(name: str, value: Any) -> dict[str, Tensor]:
    """The floating-point tensors in an output, by their place. Without weights, which only eager attention returns
    unasked."""
    if isinstance(value, Tensor):
        return {name: value} if value.is_floating_point() and "attentions" not in name else {}
    parts = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    )
    return {key: part for place, inner in parts for key, part in _tensors(f"{name}.{place}".strip("."), inner).items()}


def padded(model: PreTrainedModel, inputs: Mapping[str, Any], real: Tensor) -> dict[str, Tensor]:
    """The outputs of real tokens; others only if a model has no outputs of tokens."""
    outputs = forward(model, inputs)
    chosen = {name: value[real] for name, value in outputs.items() if value.shape[:2] == real.shape}
    chosen |= {name: value for name, value in outputs.items() if value.shape[:2] == (2, DECODER_TOKENS)}
    return chosen or {name: value for name, value in outputs.items() if value.ndim == 2} or outputs


def decoded(
    model: PreTrainedModel, inputs: Mapping[str, Any], padding: int = 0, static: bool = False
) -> dict[str, Tensor]:
    """The outputs of a prompt, two tokens at once and four single tokens, with the model's cache."""
    name = next(name for name in ("decoder_input_ids", "input_ids", "inputs_embeds") if name in inputs)
    tokens, others, two_stacks = (
        inputs[name],
        {key: value for key, value in inputs.items() if key != name},
        name == "decoder_input_ids",
    )
    length = tokens.shape[1]
    cache: Any = StaticCache(config=model.config, max_cache_len=length + 3) if static else None
    if static and two_stacks:
        # a config would give cross-attention the windows of the decoder
        cache = EncoderDecoderCache(cache, DynamicCache())
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :padding] = 0
    outputs: dict[str, Tensor] = {}
    start = 0
    for end in [length - 6, length - 4, *range(length - 3, length + 1)]:
        step = {**others, name: tokens[:, start:end], "use_cache": True, CACHE: cache}
        if padding:
            step["attention_mask"] = mask if two_stacks else mask[:, :end]
        torch.manual_seed(0)
        returned = model(**step)
        cache = returned[CACHE]
        value = next(iter(_tensors("", returned).values()))
        outputs[f"tokens {start} to {end - 1}"] = (
            value[mask[:, start:end].bool()] if padding and not two_stacks else value
        )
        start = end
    return outputs


def ways_to_call(model: PreTrainedModel) -> dict[str, Mode]:
    """The modes of a model's class by name, the plainest first. Those with images or sounds that cannot be made are
    left out.

    Raises:
        Exception: no inputs are known with which the model runs.
    """
    modes: dict[str, Mode] = {}
    problem: Exception | None = None
    if {"input_ids", "inputs_embeds"} & inspect.signature(type(model).forward).parameters.keys():
        try:
            modes = _with_texts(model)
            modes["forward"](model)
        except Exception as error:
            problem, modes = error, {}
    try:
        inputs = other_inputs(model)
        if not modes or inputs.keys() - {"input_ids", "decoder_input_ids", "inputs_embeds", "encoder_hidden_states"}:
            forward(model, inputs)
            modes |= {"other inputs" if modes else "forward": partial(forward, inputs=inputs)} | _with_sounds(
                model, inputs
            )
    except Exception as error:
        if not modes:
            raise problem or error from error
    return modes


def _with_sounds(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Mode]:
    sound = next((inputs[name] for name in ("input_values", "input_features") if name in inputs), None)
    if (
        sound is None
        or "input_ids" in inputs
        or "attention_mask" not in inspect.signature(type(model).forward).parameters
    ):
        return {}
    length = sound.shape[1] if sound.ndim < 3 or "input_values" in inputs else max(sound.shape[1:])
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, -length // 3 :] = 0
    batch = {name: torch.cat([value, value.flip(-1) if value is sound else value]) for name, value in inputs.items()}
    return {"sounds padded": partial(forward, inputs={**batch, "attention_mask": mask})}


def _with_texts(model: PreTrainedModel) -> dict[str, Mode]:
    taken = inspect.signature(type(model).forward).parameters
    config, text, random = model.config, model.config.get_text_config(), Generator().manual_seed(0)
    highest = min(getattr(text, "vocab_size", None) or VOCABULARY, 100)
    two_stacks = "decoder_input_ids" in taken and bool(config.is_encoder_decoder)
    inputs: dict[str, Any] = {}
    if "input_ids" in taken:
        inputs["input_ids"] = torch.randint(10, highest, (2, TOKENS), generator=random)
    else:
        inputs["inputs_embeds"] = torch.randn(2, TOKENS, text.hidden_size, generator=random, dtype=torch.float64)
    if two_stacks:
        inputs["decoder_input_ids"] = torch.randint(10, highest, (2, DECODER_TOKENS), generator=random)
    if "bbox" in taken:
        corners = torch.arange(4 * TOKENS).view(2, TOKENS, 2) % 50
        boxes = torch.cat([corners, corners + 20], -1)
        inputs["bbox"] = boxes / 100 if config.model_type == "udop" else boxes
    modes: dict[str, Mode] = {"forward": partial(forward, inputs=inputs)}
    if "attention_mask" in taken:
        for side, hidden in {"right": slice(TOKENS - PADDED, None), "left": slice(0, PADDED)}.items():
            mask = torch.ones(2, TOKENS, dtype=torch.long)
            mask[1, hidden] = 0
            modes[f"padded {side}"] = partial(padded, inputs={**inputs, "attention_mask": mask}, real=mask.bool())
    if "position_ids" in taken and "use_cache" in taken and not two_stacks:
        places = torch.tensor([*range(10), *range(8), *range(6)])[None].expand(2, -1)
        # a cache has one document
        modes["documents"] = partial(forward, inputs={**inputs, "position_ids": places, "use_cache": False})
    kinds = next((name for name in ("mm_token_type_ids", "token_type_ids") if name in taken), None)
    if kinds and "use_cache" in taken and hasattr(config, "vision_config"):
        blocks = torch.zeros(2, TOKENS, dtype=torch.long)
        blocks[:, 3:10], blocks[1, 14:22] = 1, 1
        modes["blocks"] = partial(forward, inputs={**inputs, kinds: blocks})
    if "use_cache" in taken and CACHE in taken:
        modes |= {
            "decoded": partial(decoded, inputs=inputs),
            "decoded padded": partial(decoded, inputs=inputs, padding=PADDED),
        }
        modes["decoded static"] = partial(decoded, inputs=inputs, static=True)
    return modes


# The comparison


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """Float64 where a model asks for float32, as eager attention does for its softmax, so that the definition is
    exact."""
    changes = {(torch, "float32"): torch.float64, (torch, "float"): torch.float64, (Tensor, "float"): Tensor.double}
    before = {key: getattr(*key) for key in changes}
    torch.set_default_dtype(torch.float64)
    for (place, name), value in changes.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name), value in before.items():
            setattr(place, name, value)
        torch.set_default_dtype(torch.float32)


def build(kind: type[PreTrainedModel], config: PreTrainedConfig, implementation: str | None) -> PreTrainedModel:
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config._experts_implementation = "eager"  # the others compute no float64
    return kind._from_config(config, attn_implementation=implementation, dtype=torch.float64).eval().double()


@torch.no_grad()
def make_visible(model: PreTrainedModel) -> None:
    """Weights of trained size, so that attention shows in the outputs. No zeros, which would hide a part."""
    random = Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.is_floating_point() or not parameter.numel() or "duration" in name:
            continue
        if "sink" in name:
            parameter.normal_(generator=random)
        elif not parameter.isfinite().all() or not 0.02 <= parameter.abs().max() <= 100:
            parameter.normal_(std=0.3 if parameter.ndim < 2 else 0.1, generator=random)
        elif parameter.ndim == 2:
            parameter.mul_(4)


def evaluate(model: PreTrainedModel, mode: Mode, backward: bool) -> dict[str, Tensor]:
    """The outputs of a mode, with the gradients of a random sum of them."""
    with torch.set_grad_enabled(backward):
        outputs = mode(model)
    results = {name: value.detach() for name, value in outputs.items()}
    random = Generator().manual_seed(1)
    loss = sum(
        (value * torch.randn(value.shape, generator=random)).sum() for value in outputs.values() if value.requires_grad
    )
    if isinstance(loss, Tensor):
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
        results |= {
            f"gradient of {name}": value
            for name, value in zip(parameters, gradients, strict=True)
            if value is not None
        }
    return results


def difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference between two evaluations, relative to a tensor's largest value or to 1, and the name of
    that tensor."""
    worst = (0.0, "")
    for name in first.keys() | second.keys():
        value, other = first.get(name), second.get(name)
        if value is None or other is None:  # an unused parameter has no gradient, or one of 0
            value, other = (
                torch.zeros_like(part) if part is not None and side is None else side
                for side, part in ((value, other), (other, value))
            )
        if value.shape != other.shape:
            return float("inf"), f"{name}, of shape {tuple(other.shape)} instead of {tuple(value.shape)}"
        apart = torch.where((value == other) | (value.isnan() & other.isnan()), 0, (value - other).abs()).nan_to_num(
            nan=float("inf")
        )
        if apart.numel():
            largest = float(value[value.isfinite()].abs().max()) if value.isfinite().any() else 1.0
            worst = max(worst, (float(apart.max()) / max(1.0, largest), name))
    return worst


def compare(model_type: str, implementation: str = "longattn") -> dict[str, Any]:
    """The entry of a model type.

    equal: names of what was compared, separated by semicolons; with ``window`` if its windows hide keys here.
    apart: the largest relative difference.
    refused: each sentence with the names of what it refused.
    unpadded: whether a padded batch is ``equal`` after :func:`hf_longattn.unpad`, or the sentence that refuses it.
    own: whether no layer called the attention function; then its masks alone come from ``implementation``.
    not built: why there is nothing to compare.
    DIFFERS: what differs, by name. No entry has it.
    """
    kind = model_class(model_type)
    try:
        if kind is None or model_type in NOT_RUN:
            raise ValueError(NOT_RUN.get(model_type, "it has no model class"))
        config = small_config(model_type)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in kind._from_config(copy.deepcopy(config)).parameters())
        if size > LARGEST:
            raise ValueError(f"it has {size // 10**6} million parameters when small")
        model = build(kind, config, REFERENCES.get(model_type, "eager"))
        make_visible(model)
        modes = ways_to_call(copy.deepcopy(model))  # some models remember a call
    except Exception as error:
        return {"not built": _reason(error)} if uses_interface(model_type) else {"own": "not run"}
    calls = 0
    attention = ALL_ATTENTION_FUNCTIONS[implementation]

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return attention(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS[implementation] = counting
    try:
        entry = _compared(model, config, modes, implementation)
        if not calls:
            return entry | {"own": "run"}
        compared = [name for name in ("padded right", "padded left") if name in entry.get("equal", "").split("; ")]
        return entry | _without_padding(model, config, modes, compared)
    except KeyError as error:  # a table of classes by the name of the implementation
        if implementation not in str(error):
            raise
        return {"own": "not run"}
    finally:
        del ALL_ATTENTION_FUNCTIONS[implementation]


def _compared(
    model: PreTrainedModel, config: PreTrainedConfig, modes: Mapping[str, Mode], implementation: str
) -> dict[str, Any]:
    other = build(type(model), config, implementation)
    other.load_state_dict(model.state_dict())
    equal: list[str] = []
    refused, differs, largest = dict[str, list[str]](), dict[str, str](), 0.0
    for name, mode in modes.items():
        if name == "decoded padded" and config.model_type in PADDING_SEEN:
            continue
        backward = "decoded" not in name and name != "padded left"
        try:
            expected = evaluate(model, mode, backward)
        except Exception:  # eager attention cannot do it
            continue
        if name == "forward" and _windows_hide_keys(model, config, mode, expected):
            equal.append("window")
        try:
            apart, where = difference(expected, evaluate(other, mode, backward))
        except LongAttentionError as error:
            refused.setdefault(str(error), []).append(name)
        except Exception as error:
            differs[name] = _reason(error, place=True)
        else:
            if apart < TOLERANCE:
                equal.append(name)
                largest = max(largest, apart)
            else:
                differs[name] = f"{apart:.1e} in {where}"
    entry: dict[str, Any] = {"equal": "; ".join(equal), "apart": f"{largest:.0e}"} if {*equal} - {"window"} else {}
    sentences = {sentence: "; ".join(names) for sentence, names in refused.items()}
    return entry | {word: values for word, values in {"refused": sentences, "DIFFERS": differs}.items() if values}


def _without_padding(
    model: PreTrainedModel, config: PreTrainedConfig, modes: Mapping[str, Mode], compared: Sequence[str]
) -> dict[str, Any]:
    """What an entry says of :func:`hf_longattn.unpad`; nothing if no batch of texts has padding.

    compared: the modes with padding in which the model is equal to eager attention.
    """
    taken = inspect.signature(type(model).forward).parameters
    if "padded right" not in modes or "input_ids" not in taken:
        return {}
    other = build(type(model), config, "longattn")
    other.load_state_dict(model.state_dict())
    try:
        unpad(other)
    except LongAttentionError as error:
        return {"unpadded": str(error)}
    except Exception as error:
        return {"DIFFERS": {"unpad": _reason(error, place=True)}}
    if not compared:
        return {}
    differs = {}
    for name in compared:
        mode = modes[name]
        inputs = mode.keywords["inputs"] | ({"use_cache": False} if "use_cache" in taken else {})
        mode = partial(padded, inputs=inputs, real=mode.keywords["real"])
        backward = name == "padded right"
        expected = evaluate(model, mode, backward)
        try:
            apart, where = difference(expected, evaluate(other, mode, backward))
        except Exception as error:
            differs[f"{name}, unpadded"] = _reason(error, place=True)
            continue
        if apart >= TOLERANCE:
            differs[f"{name}, unpadded"] = f"{apart:.1e} in {where}"
    return {"DIFFERS": differs} if differs else {"unpadded": "equal"}


def _windows_hide_keys(
    model: PreTrainedModel, config: PreTrainedConfig, mode: Mode, expected: Mapping[str, Tensor]
) -> bool:
    """Whether the outputs of eager attention are others without windows."""
    with contextlib.suppress(Exception), torch.no_grad():
        if (wide := windowless(config)) is not None:
            full = build(type(model), wide, "eager")
            full.load_state_dict(model.state_dict())
            outputs = mode(full)
            return difference({name: expected[name] for name in outputs}, outputs)[0] > 1000 * TOLERANCE
    return False


def _reason(error: Exception, place: bool = False) -> str:
    """An error in one line of at most 120 characters, without the paths of this machine."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        text = f"it needs {text.split(' requires the ')[-1].split(' library')[0]}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    words = text if isinstance(error, ImportError) or type(error) is ValueError else f"{type(error).__name__}: {text}"
    return words[:120] + (f" ({frame.filename.rpartition('/')[2]}:{frame.lineno})" if place else "")


def uses_interface(model_type: str) -> bool:
    """Whether the modelling file of a model type, or of one of its parts, names transformers' AttentionInterface."""
    with contextlib.suppress(Exception):  # some have no default config
        if any(name in CONFIG_MAPPING and uses_interface(name) for name in parts_of(CONFIG_MAPPING[model_type]())):
            return True
    spec = importlib.util.find_spec(CONFIG_MAPPING[model_type].__module__.replace("configuration_", "modeling_"))
    if spec is None or spec.origin is None:
        return False
    with open(spec.origin, encoding="utf-8") as file:
        return "ALL_ATTENTION_FUNCTIONS" in file.read()


def parts_of(config: PreTrainedConfig) -> set[str]:
    """The model types of a config's parts, and of theirs."""
    parts = [part for name in config.sub_configs if isinstance(part := getattr(config, name, None), PreTrainedConfig)]
    return {name for part in parts for name in (part.model_type, *parts_of(part))}


# The table


def place_parts(entries: dict[str, dict[str, Any]]) -> None:
    """Name, for each part that does not run by itself, a model that is equal and has it: ``in``."""
    for whole, entry in entries.items():
        if "equal" in entry and "own" not in entry:
            for name in parts_of(small_config(whole)) & entries.keys():
                if "not built" in entries[name]:
                    entries[name] = {"in": whole}


def stored() -> dict[str, Any]:
    """The stored table: the version of transformers, and the entries."""
    record: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    return record


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", help="model types; all without any")
    parser.add_argument("--store", action="store_true", help=f"write {STORED.name}")
    parser.add_argument("--implementation", default="longattn", help="what is compared with eager attention")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    entries = stored()["architectures"] if options.store and options.names else {}
    with float64_throughout():
        for name in options.names or model_types():
            if model_class(name) is not None:
                entries[name] = compare(name, options.implementation)
                print(name, entries[name], flush=True)
    if options.store:
        place_parts(entries)
        lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in sorted(entries.items())]
        head = f'{{\n "transformers": "{transformers.__version__}",\n "architectures": {{\n'
        STORED.write_text(head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
