"""A series whose bursts come back after 2,000 steps: a small TimesFM 2.5 that looked at 512 steps, converted to look at 4,096.

A series is noise, and every :data:`LAG` steps a burst of 16 steps, whose shape and level are those of the series. The next burst is due
where the series ends, and is the same but for the noise. A short model learned it with bursts 256 steps apart; each system starts from
it, is converted by ``longattn convert --generic`` and fine-tuned briefly on the long lag. Errors are mean squares, in which the noise
of a step is :data:`NOISE` squared. A seasonal naive forecast repeats the last burst, with its noise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TimesFm2_5Config, TimesFm2_5ModelForPrediction

import hf_longattn
from hf_longattn.conversion import convert_checkpoint

from .far_running import RESULTS, WARMUP, stored

PATCH, NOISE = 16, 0.1
"""Steps of a patch, of a burst and of a forecast; the deviation of the noise."""
SHORT, LONG = 512, 4096
"""Steps that the short and the long model look at."""
SHORT_LAG, LAG = 256, 2000
"""Steps from one burst to the next."""
WINDOW = 16
"""Patches that a window sees back, 256 steps."""
FULL = {"mechanism": "full"}
CAUSAL_WINDOW = {"mechanism": "window", "window": WINDOW}
SYSTEMS: dict[str, tuple[str, Mapping[str, Any] | None]] = {
    "short": (f"the short model, {SHORT} steps", None),
    "window": ("window in every layer", CAUSAL_WINDOW),
    "last-full": ("window, the last layer full", {**CAUSAL_WINDOW, "layers": {1: FULL}}),
    "full": ("full attention", FULL),
}


def draw(count: int, steps: int, lag: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Series ``(count, steps)`` and what follows ``(count, PATCH)``."""
    shapes = random.standard_normal((count, 1)) * 2 + random.standard_normal((count, PATCH))
    values = np.zeros((count, steps + PATCH))
    for start in range(steps, -1, -lag):
        values[:, start : start + PATCH] = shapes
    values += NOISE * random.standard_normal(values.shape)
    series = torch.from_numpy(values).float()
    return series[:, :steps], series[:, steps:]


def small_model(width: int, seed: int) -> TimesFm2_5ModelForPrediction:
    """A TimesFM 2.5 of two layers with random weights."""
    torch.manual_seed(seed)
    config = TimesFm2_5Config(
        patch_length=PATCH, context_length=SHORT, horizon_length=PATCH, output_quantile_len=PATCH, quantiles=[0.5], decode_index=1,
        num_hidden_layers=2, hidden_size=width, intermediate_size=2 * width, head_dim=16, num_attention_heads=width // 16,
        num_key_value_heads=width // 16, infer_is_positive=False, force_flip_invariance=False, use_continuous_quantile_head=False,
    )  # fmt: skip
    return TimesFm2_5ModelForPrediction(config)


def train(model: Any, series_steps: int, lag: int, batches: int, args: argparse.Namespace, rate: float, seed: int) -> float:
    """Train on batches of series of ``series_steps`` steps; returns seconds of processor time."""
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    begun = time.process_time()
    for step in range(batches):
        series, future = draw(args.batch, series_steps, lag, random)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - step / batches)
        (model(past_values=series).mean_predictions - future).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - begun


@torch.no_grad()
def errors(forecast: Callable[[Tensor], Tensor], count: int, steps: int, lag: int, seed: int) -> dict[str, list[float]]:
    """The mean squared and the mean absolute error of each of ``count`` series."""
    series, future = draw(count, steps, lag, np.random.default_rng(seed))
    difference = forecast(series) - future
    return {"squared": difference.square().mean(1).tolist(), "absolute": difference.abs().mean(1).tolist()}


def forecasts(model: Any) -> Callable[[Tensor], Tensor]:
    """What a model forecasts."""
    model.eval()
    return lambda series: model(past_values=series).mean_predictions


def run_seed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The errors of every system, each from the short model of this seed; what an earlier run has measured is taken."""
    folder = Path(args.work_dir) / f"lags-{seed}"
    log = folder / "log.json"
    run: dict[str, Any] = json.loads(log.read_text()) if log.exists() else {"seed": seed, "systems": {}}
    if not log.exists():
        model = small_model(args.width, seed)
        run["seconds"] = train(model, SHORT, SHORT_LAG, args.short_batches, args, args.short_rate, seed)
        run["short"] = errors(forecasts(model), args.test_series, SHORT, SHORT_LAG, 10_000 + seed)
        model.save_pretrained(folder)
        log.write_text(json.dumps(run))
        print(f"seed {seed}: {np.mean(run['short']['squared']):.3f} on short series, {run['seconds']:.0f} s", flush=True)
    measured = (args.test_series, LONG, LAG, 20_000 + seed)
    run["naive"] = errors(lambda series: series[:, LONG - LAG : LONG - LAG + PATCH], *measured)
    for name, (title, attention) in SYSTEMS.items():
        if name in run["systems"]:
            continue
        if attention is None:
            model = TimesFm2_5ModelForPrediction.from_pretrained(folder)
        else:
            settings: dict[str, Any] = {"generic": True, "long_attention": attention, "max_length": LONG, "overwrite": True}
            long_folder = folder.with_name(f"{folder.name}-{name}")
            convert_checkpoint(folder, long_folder, verify=False, **settings)
            model = hf_longattn.load_generic(long_folder)
        before = errors(forecasts(model), *measured)
        seconds = train(model, LONG, LAG, args.batches, args, args.rate, 30_000 + seed)
        run["systems"][name] = {"name": title, "before": before, "seconds": seconds, "after": errors(forecasts(model), *measured)}
        log.write_text(json.dumps(run))
        means = [float(np.mean(run["systems"][name][part]["squared"])) for part in ("before", "after")]
        print(f"seed {seed}, {title}: {means[0]:.3f} → {means[1]:.3f}, {seconds:.0f} s", flush=True)
    return run


def with_error(seeds: Sequence[Sequence[float]]) -> str:
    """The mean over all series, its standard error, and the mean of each seed."""
    values = np.concatenate([np.asarray(seed) for seed in seeds])
    means = ", ".join(f"{np.mean(seed):.3f}" for seed in seeds)
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f} ({means})"


def page(result: Mapping[str, Any]) -> str:
    """The stored result as a page of markdown."""
    settings, runs = result["settings"], result["runs"]
    short = ", ".join(f"{np.mean(run['short']['squared']):.3f}" for run in runs)
    lines = [
        f"Series of {LONG:,} steps: noise of deviation {NOISE}, and every {LAG:,} steps a burst of {PATCH} steps, of a level and shape of "
        f"the series. The forecast are the {PATCH} steps after the end, where a burst is due; the last one began {LAG:,} steps before. A "
        f"TimesFM 2.5 of two layers, width {settings['width']} and patches of {PATCH} steps learned it with {SHORT} steps and bursts "
        f"{SHORT_LAG} steps apart (mean squared error {short}). Every system starts from it and is fine-tuned on the same "
        f"{settings['batches']} batches of {settings['batch']} long series; converted ones look at {LONG:,} steps, {LONG // PATCH} tokens.",
        "",
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''}, {settings['test_series']} new series for each; ± is the standard error over "
        "series, in brackets each seed's mean. Seasonal naive repeats the last burst; the least error that a forecast can have is "
        f"{NOISE**2:.3f}, that of the noise. Seconds of processor time of the fine-tuning.",
        "",
        "| system | squared error before | squared error after | absolute error after | s |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (title, _) in SYSTEMS.items():
        rows = [run["systems"][name] for run in runs if name in run["systems"]]
        cells = [
            with_error([row[part][kind] for row in rows])
            for part, kind in (("before", "squared"), ("after", "squared"), ("after", "absolute"))
        ]
        lines.append(f"| {title} | {' | '.join(cells)} | {np.mean([row['seconds'] for row in rows]):.0f} |")
    naive = [with_error([run["naive"][kind] for run in runs]) for kind in ("squared", "absolute")]
    lines += [f"| seasonal naive | – | {' | '.join(naive)} | – |", ""]
    return "\n".join([*lines, *(f"- {note}" for note in result["notes"]), "", f"`{result['command']}`; {result['machine']}.", ""])


def main() -> None:
    """Run the study and store its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="series in a batch")
    parser.add_argument("--short-batches", type=int, default=1500)
    parser.add_argument("--short-rate", type=float, default=1e-3)
    parser.add_argument("--batches", type=int, default=80, help="batches of the fine-tuning")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--test-series", type=int, default=64)
    parser.add_argument("--notes", nargs="+", default=[], help="sentences about this run, for the page")
    parser.add_argument("--work-dir", type=Path, default=Path("far_work"), help="folder of models and errors, which later runs take")
    parser.add_argument("--output", type=Path, default=RESULTS / "far_lags.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(args).items() if name not in ("notes", "work_dir", "output")}
    result = {
        "command": "python -m scripts.dev.studies.far_lags",
        "settings": settings,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}",
        "notes": args.notes,
        "runs": [run_seed(args, seed) for seed in args.seeds],
    }
    args.output.write_text(stored(result), encoding="utf-8")
    args.output.with_suffix(".md").write_text(page(result), encoding="utf-8")


if __name__ == "__main__":
    main()
