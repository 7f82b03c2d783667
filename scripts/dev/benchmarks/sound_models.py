"""Models of sound over minutes: Parakeet and Wav2Vec2 with windows, with full attention of ours, and the stock model as far as it runs.

Outputs are compared first, on ten seconds, where the window of 128 frames covers Parakeet's: all three are then equal. Every pass that is
measured has a process of its own, whose peak memory on top of weights and input is stored with the processor's seconds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ParakeetEncoder, ParakeetEncoderConfig, Wav2Vec2Config, Wav2Vec2Model

from hf_longattn.errors import LongAttentionError, OptionError, nearest
from hf_longattn.families import FAMILIES

from .memory import answer, growth, in_a_new_process
from .report import machine, markdown_table, store_study, stored_study

SHAPES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "parakeet": ("parakeet_encoder", ParakeetEncoderConfig, ParakeetEncoder, {"num_mel_bins": 128}),
    "wav2vec2": ("wav2vec2", Wav2Vec2Config, Wav2Vec2Model, {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
}
"""Name -> the base, its classes, and values other than the defaults: parakeet-ctc-0.6b's, and a norm of each frame."""
WINDOW, FULL, STOCK = "window", "full", "stock"
IMPLEMENTATIONS = (WINDOW, FULL, STOCK)
CHECKED_SECONDS, TOLERANCE = 10.0, 1e-4
WARM_UP_SECONDS = 2.0
SAME_MACHINE = ("processor", "threads", "torch", "transformers")


def build(name: str, implementation: str, layers: int | None) -> Any:
    """The model of a shape with random weights, the same for every implementation."""
    base, config_class, model_class, values = SHAPES[name]
    values = {**values, **({} if layers is None else {"num_hidden_layers": layers})}
    torch.manual_seed(0)
    stock = model_class(config_class(**values)).eval().requires_grad_(False)
    if implementation == STOCK:
        return stock
    family = FAMILIES[base]
    attention = {} if implementation == WINDOW else {"long_attention": {"mechanism": "full"}}
    with torch.device("meta"):
        model = family.model_class(model_class.__name__)(family.config_class(**values, **attention))
    model.load_state_dict(stock.state_dict(), assign=True)
    for path, buffer in stock.named_buffers():  # also those that are in no checkpoint
        owner, _, key = path.rpartition(".")
        setattr(model.get_submodule(owner), key, buffer)
    return model.eval()


def sound_of(name: str, model: Any, seconds: float) -> Tensor:
    """Random sound, the same at every call."""
    rule: Any = FAMILIES[SHAPES[name][0]].audio
    return rule.seeded(model.config, seconds)


def run_sound_models(
    minutes: Sequence[float], names: Sequence[str], output: Path, *, base_up_to: float, layers: int | None = None, again: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Compare and measure the shapes; what is stored in ``output`` from this machine is not measured again.

    Args:
        minutes: durations.
        base_up_to: minutes up to which the stock model is measured.
        layers: layers of the encoders, in place of the checkpoints'.
    Returns:
        The record: seconds of the processor, MiB and frames by shape, implementation and minutes.
    Raises:
        OptionError: an unknown shape.
        LongAttentionError: outputs differ, or a pass failed.
    """
    about = machine()
    rows: list[dict[str, Any]] = []
    if output.with_suffix(".json").exists() and not again:
        stored = stored_study(output)
        same = stored["layers"] == layers and all(stored["machine"][key] == about[key] for key in SAME_MACHINE)
        rows = stored["results"] if same else []
    for name in names:
        if name not in SHAPES:
            raise OptionError(f"There is no shape {name!r}; choose from {', '.join(SHAPES)}.{nearest(name, SHAPES)}")
        log(f"{name}: outputs differ by {_check(name, layers):.1e}")
        for duration in minutes:
            for implementation in IMPLEMENTATIONS:
                key = {"model": name, "implementation": implementation, "minutes": duration}
                known = any(all(row[field] == value for field, value in key.items()) for row in rows)
                if known or (implementation == STOCK and duration > base_up_to):
                    continue
                rows.append({**key, **_measured(name, implementation, duration * 60, layers)})
                log(str(rows[-1]))
                record = {"machine": about, "kind": "sound models", "clock": "processor", "layers": layers, "results": rows}
                store_study(output, record, sound_table(record))
    return {"machine": about, "kind": "sound models", "clock": "processor", "layers": layers, "results": rows}


@torch.no_grad()
def _check(name: str, layers: int | None) -> float:
    """The largest difference between the stock model's outputs and those of full attention, of the largest number."""
    outputs = []
    for implementation in (STOCK, FULL):
        model = build(name, implementation, min(2, layers or 2))
        outputs.append(model(sound_of(name, model, CHECKED_SECONDS)).last_hidden_state)
    error = float((outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max())
    if not error <= TOLERANCE:
        raise LongAttentionError(
            f"The outputs of {name} differ by {error:.1e}, so nothing was timed; run tests/modeling/test_audio_models.py."
        )
    return error


def _measured(name: str, implementation: str, seconds: float, layers: int | None) -> dict[str, Any]:
    request = {"name": name, "implementation": implementation, "seconds": seconds, "layers": layers}
    return in_a_new_process(__name__, request, f"{name} ({implementation}) over {seconds:g} seconds")


@torch.no_grad()
def _measured_here(name: str, implementation: str, seconds: float, layers: int | None) -> dict[str, Any]:
    model = build(name, implementation, layers)
    model(sound_of(name, model, WARM_UP_SECONDS))
    sound = sound_of(name, model, seconds)
    gc.collect()
    frames: list[int] = []
    start = time.process_time()
    mebibytes = growth(lambda: frames.append(model(sound).last_hidden_state.shape[1]))
    return {"seconds": round(time.process_time() - start, 2), "mebibytes": round(mebibytes), "frames": frames[0]}


def sound_table(record: dict[str, Any]) -> str:
    """Shapes × minutes: seconds and MiB of every implementation, and how many times as fast as the stock model windows are."""
    header = ["model", "minutes", "frames", *(f"{name}, {unit}" for name in IMPLEMENTATIONS for unit in ("s", "MiB")), "times as fast"]
    rows = []
    for model, minutes in dict.fromkeys((row["model"], row["minutes"]) for row in record["results"]):
        by_name = {row["implementation"]: row for row in record["results"] if (row["model"], row["minutes"]) == (model, minutes)}
        cells = [model, f"{minutes:g}", f"{next(iter(by_name.values()))['frames']:,}"]
        for name in IMPLEMENTATIONS:
            cells += [f"{by_name[name]['seconds']:,.1f}", f"{by_name[name]['mebibytes']:,}"] if name in by_name else ["–", "–"]
        both = WINDOW in by_name and STOCK in by_name
        rows.append([*cells, f"{by_name[STOCK]['seconds'] / by_name[WINDOW]['seconds']:.1f}×" if both else "–"])
    note = "" if record["layers"] is None else f"\nWith {record['layers']} layers.\n"
    return markdown_table(header, rows) + "\n" + note


if __name__ == "__main__":
    answer(_measured_here)
