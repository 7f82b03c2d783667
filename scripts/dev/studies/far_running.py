"""Runs a study of pictures with far-apart evidence: small models are pre-trained, every system is fine-tuned in a process of its own.

A small ViT learns the task in pictures of ``--short-size`` pixels. Every system starts from it and is fine-tuned on the same pictures,
which become larger by stages (``--stages``), as many of each size for each system.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from .far_drawing import Labelled, Shown, Task
from .far_systems import System, model_logits, systems

LOG = "log.json"
RESULTS = Path("scripts/dev/results")
WARMUP = 20
"""Steps in which the rate rises."""
EASY_SHARE, EASY_LOSS = 0.2, 0.5
"""Small pictures are easy ones until the loss is below this, and then this share of them."""
POSITION_SCALE = 0.3
"""Of sines and cosines in a position table, so that they do not outweigh the patches."""
BEFORE, AFTER, CONTROL = "before", "after", "control"

Logits = Callable[[nn.Module, Tensor], Tensor]


class Stage(NamedTuple):
    """A part of the fine-tuning: pictures of ``size`` pixels, how many, and how many in a batch."""

    size: int
    pictures: int
    batch: int


def stage(text: str) -> Stage:
    """``SIZE:PICTURES:BATCH`` as a stage."""
    return Stage(*map(int, text.split(":")))


def batches(task: Task, shown: Shown, batch: int, seed: int, pictures: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``batch`` pictures; ``pictures`` in all, 0 = without end."""
    random = np.random.default_rng(seed)
    drawn = 0
    while not pictures or drawn < pictures:
        count = min(batch, pictures - drawn) if pictures else batch
        yield task.batch(shown, count, random)
        drawn += count


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, in per cent (Wilson 1927)."""
    z, share = 1.96, right / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return tuple(100 * (centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))  # type: ignore[return-value]


def measured(model: nn.Module, logits: Logits, pictures: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracy in per cent, the share of right answers for each picture, and seconds of processor time for a picture."""
    model.eval()
    shares: list[float] = []
    seconds = 0.0
    with torch.no_grad():
        for pixels, labels in pictures:
            begun = time.process_time()
            answers = logits(model, pixels).argmax(-1)
            seconds += time.process_time() - begun
            answers, labels = answers.view(len(pixels), -1), labels.view(len(pixels), -1)
            scored = labels >= 0
            shares += [round(share, 4) for share in (((answers == labels) & scored).sum(1) / scored.sum(1)).tolist()]
    return {"accuracy": 100 * float(np.mean(shares)), "n": len(shares), "seconds": seconds / len(shares), "shares": shares}


def trained(
    model: nn.Module,
    logits: Logits,
    pictures: Iterator[tuple[Tensor, Tensor]],
    rate: float,
    progress: Callable[[int], float],
    losses: list[float],
    labelled: Labelled = "class",
) -> list[float]:
    """Train until ``progress(step)``, the finished share of the training, is 1; the rate falls to zero by then.

    Args:
        pictures: batches, drawn outside the measured time.
        progress: called with the number of finished steps.
        losses: to which the loss of each step is appended.
        labelled: the tokens that have labels.

    Returns:
        Seconds of processor time of each step, for the model alone.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    seconds: list[float] = []
    while (share := progress(len(seconds))) < 1:
        pixels, labels = next(pictures)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (len(seconds) + 1) / WARMUP) * (1 - share)
        begun = time.process_time()
        loss = loss_of(logits(model, pixels), labels, labelled)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - begun)
        losses.append(loss.item())
    return seconds


def loss_of(logits: Tensor, labels: Tensor, labelled: Labelled) -> Tensor:
    """The mean cross entropy of labelled tokens; if both kinds of tokens have labels, the sum of the class tokens' and the patches'."""
    if labelled == "both":
        return loss_of(logits[:, :1], labels[:, :1], "class") + loss_of(logits[:, 1:], labels[:, 1:], "patches")
    total = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum")
    return total / (labels >= 0).sum().clamp(min=1)


class PeakMemory:
    """The most memory that this process has held since it was made beyond what it held then, in MB; needs Linux."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self.before = self._peak()

    def __call__(self) -> float:
        return self._peak() - self.before

    def _peak(self) -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def small_model(task: Task, args: argparse.Namespace, seed: int) -> ViTForImageClassification:
    """A ViT for small pictures with random weights, or with those of an earlier small model.

    That of another task gets a new head, and that of smaller pictures a position table resized by the model's own method.
    """
    if args.start_from:
        size = args.start_size or args.short_size
        settings: dict[str, Any] = {"num_labels": task.classes, "ignore_mismatched_sizes": True}
        model = ViTForImageClassification.from_pretrained(task_folder(args.start_from, args, seed, size), **settings)
        if size != args.short_size:
            embeddings, side = model.vit.embeddings, args.short_size // task.patch
            blank = torch.zeros(1, 1 + side * side, args.width)
            resized = embeddings.interpolate_pos_encoding(blank, args.short_size, args.short_size).detach()
            embeddings.position_embeddings = nn.Parameter(resized)
            model.config.image_size = args.short_size
        return model
    config = ViTConfig(
        hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=max(1, args.width // 32), image_size=args.short_size,
        intermediate_size=4 * args.width, patch_size=task.patch, num_labels=task.classes, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    if task.positions == "interpolate":
        model.vit.embeddings.position_embeddings.data[0, 1:] = POSITION_SCALE * waves(args.short_size // task.patch, args.width)
    return model


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of the rows and columns of a grid, ``(side * side, width)``, as in MAE (He et al. 2021)."""
    angles = torch.arange(side)[:, None] * 10_000 ** -(torch.arange(width // 4) * 4 / width)
    table = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([table.repeat_interleave(side, 0), table.repeat(side, 1)], 1)


def small_folder(task: Task, args: argparse.Namespace, seed: int) -> Path:
    """The folder of the small model with this seed and of what its systems have measured."""
    return task_folder(task.name, args, seed, args.short_size)


def task_folder(name: str, args: argparse.Namespace, seed: int, size: int) -> Path:
    """The folder of the small model of a task by its name and the size of its pictures."""
    return Path(args.work_dir) / f"{name}-{size}-{args.width}-{args.layers}-{seed}"


def pretrained(task: Task, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train a small ViT on small pictures and save it with its log, which is returned; an earlier run's is taken."""
    folder = small_folder(task, args, seed)
    if (folder / LOG).exists():
        earlier: dict[str, Any] = json.loads((folder / LOG).read_text())
        return earlier
    torch.manual_seed(seed)
    model, random, losses = small_model(task, args, seed), np.random.default_rng(seed), [math.inf]

    def logits(model: nn.Module, pixels: Tensor) -> Tensor:
        return model_logits(model, pixels, task.labelled, interpolate_pos_encoding=True)

    started, drawn = time.process_time(), 0

    def progress() -> float:
        return (time.process_time() - started) / (60 * args.short_minutes)

    def pictures() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal drawn
        easy = 1.0 if task.easy_first else 0.0
        while True:
            if easy == 1 and np.mean(losses[-20:]) < EASY_LOSS:
                easy = EASY_SHARE
                print(f"two signs from step {len(losses)} on", flush=True)
            if len(losses) % 100 == 0:
                print(f"step {len(losses)}: loss {np.mean(losses[-100:]):.3f}, {100 * progress():.0f} % of the time", flush=True)
            if task.easy_share:
                easy = task.easy_share * max(0.0, 1 - 2 * progress())
            halved = progress() < args.halved
            size, count = (args.short_size // 2, 2 * args.short_batch) if halved else (args.short_size, args.short_batch)
            drawn += count
            yield task.batch(Shown(size, easy=easy), count, random)

    seconds = trained(model, logits, pictures(), args.short_rate, lambda _: progress(), losses, task.labelled)
    held_out = measured(model, logits, batches(task, Shown(args.short_size, held_out=True), 64, 10_000 + seed, 2 * args.test_pictures))
    log = {"steps": len(seconds), "pictures": drawn, "seconds": sum(seconds), "held_out": held_out}
    model.save_pretrained(folder)
    (folder / LOG).write_text(json.dumps(log), encoding="utf-8")
    return log


def run_system(task: Task, args: argparse.Namespace, seed: int, system: System) -> dict[str, Any]:
    """Fine-tune a system on larger and larger pictures and measure it on the largest ones."""
    torch.manual_seed(seed)
    size = args.stages[-1].size
    model = system.load(small_folder(task, args, seed), size)
    batch = args.stages[-1].batch

    def logits(model: nn.Module, pixels: Tensor) -> Tensor:
        return system.read(model, pixels, task.labelled)

    def test(pictures: int, control: bool = False) -> dict[str, Any]:
        shown = Shown(size, held_out=True, control=control)
        return measured(model, logits, batches(task, shown, batch, 20_000 + seed, pictures))

    first, drawn = (next(batches(task, Shown(side), args.memory_batch, 40_000)) for side in (2 * args.short_size, size))
    memory = step_memory(model, logits, first, drawn, task.labelled)
    row: dict[str, Any] = {"MB": memory, BEFORE: test(args.other_pictures)}
    steps = [math.ceil(part.pictures / part.batch) for part in args.stages]

    def pictures() -> Iterator[tuple[Tensor, Tensor]]:
        easy = EASY_SHARE if task.easy_first else 0.0
        for number, part in enumerate(args.stages):
            yield from batches(task, Shown(part.size, easy=easy), part.batch, 30_000 + 100 * number + seed, steps[number] * part.batch)

    losses: list[float] = []
    seconds = trained(model, logits, pictures(), args.rate, lambda step: step / sum(steps), losses, task.labelled)
    ends = np.cumsum(steps)
    row["stages"] = [
        {
            **part._asdict(),
            "pictures": count * part.batch,
            "seconds": sum(seconds[end - count : end]),
            "losses": [float(np.mean(piece)) for piece in np.array_split(losses[end - count : end], min(8, count))],
        }
        for part, end, count in zip(args.stages, ends, steps, strict=True)
    ]
    row[AFTER], row[CONTROL] = test(args.test_pictures), test(args.other_pictures, control=True)
    return row


def step_memory(model: nn.Module, logits: Logits, first: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor], labelled: Labelled) -> float:
    """The memory in MB of a forward and a backward pass over ``drawn`` beyond what a new process holds after one over ``first``.

    Args:
        first: smaller pictures, so that what is loaded once is not counted.
    """

    def step(pixels: Tensor, labels: Tensor) -> None:
        loss_of(logits(model, pixels), labels, labelled).backward()
        model.zero_grad()

    model.train()
    step(*first)
    memory = PeakMemory()
    step(*drawn)
    return memory()


def run_apart(task: Task, args: argparse.Namespace, seed: int, system: str) -> dict[str, Any]:
    """What a system has measured in a process of its own; an earlier process's with the same settings is taken."""
    path = small_folder(task, args, seed) / f"{system}.json"
    settings = {name: getattr(args, name) for name in ("stages", "rate", "test_pictures", "other_pictures", "scaled", "memory_batch")}
    settings = json.loads(json.dumps(settings))
    if path.exists() and (row := json.loads(path.read_text()))["settings"] == settings:
        return dict(row)
    line = sys.argv[1:]
    subprocess.run([sys.executable, "-m", args.module, *line, "--seeds", str(seed), "--only", system], check=True)
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "settings": settings}), encoding="utf-8")
    return dict(row)


def page(result: Mapping[str, Any], introduction: str) -> str:
    """The stored result as a page of markdown."""
    settings, runs = result["settings"], result["runs"]
    size, small, patch = settings["stages"][-1][0], settings["short_size"], settings["patch"]
    scores = ", ".join(f"{run['short']['held_out']['accuracy']:.1f} %" for run in runs)
    stages = ", then ".join(f"{count:,} of {side} px" for side, count, _ in settings["stages"])
    lines = [
        f"{introduction} A ViT of {settings['layers']} layers, width {settings['width']} and patches of {patch} pixels learned it in "
        f"pictures of {small} × {small} pixels ({scores} there). Every system starts from it and is fine-tuned on the same pictures: "
        f"{stages} ({(size // patch) ** 2:,} patches).",
        "",
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''}, each with a small model of its own. {settings['test_pictures']} held-out "
        f"pictures for each seed after fine-tuning, {settings['other_pictures']} before it and for the control; accuracy "
        "in per cent ± its standard error over pictures; in brackets each seed's and the standard error over seeds. Points below full "
        "attention: on the same pictures, with the errors of the paired difference. Seconds of processor time for a picture of "
        f"{size} px, for the model alone, without drawing it, and of the whole fine-tuning; MB: memory of a forward and a backward pass "
        f"over {settings['memory_batch']} pictures beyond what the process held after one over pictures of {2 * small} px. Each system ran "
        "in a process of its own.",
        "",
        "| system | before | after | points below full attention | control | s a training picture | s a picture read | s in all | MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    names = list(dict.fromkeys(name for run in runs for name in run["systems"]))
    for name in names:
        rows = [run["systems"][name] for run in runs if name in run["systems"]]
        seeds = "" if len(rows) == len(runs) else f" ({len(rows)} seed{'s' if len(rows) > 1 else ''})"
        train, read = (np.mean([seconds_a_picture(row)[number] for row in rows]) for number in (0, 1))
        lines.append(
            f"| {rows[0]['name']}{seeds} | {score(rows, BEFORE)} | {score(rows, AFTER, each=True)} | {difference(runs, 'full', name)} "
            f"| {score(rows, CONTROL)} | {train:.3f} | {read:.3f} "
            f"| {np.mean([sum(part['seconds'] for part in row['stages']) for row in rows]):.0f} | {max(row['MB'] for row in rows):.0f} |"
        )
    notes = [*result["notes"], f"Machine: {result['machine']}."]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), f"- Command: `{result['command']}`", ""])


def seconds_a_picture(row: Mapping[str, Any]) -> tuple[float, float]:
    """Seconds of processor time of the largest pictures that a system was trained on, and read."""
    last = row["stages"][-1]
    return last["seconds"] / last["pictures"], row[AFTER]["seconds"]


def score(rows: Sequence[Mapping[str, Any]], part: str, each: bool = False) -> str:
    """The accuracy over the pictures of all seeds with its standard error, and the accuracy of each seed."""
    return with_error([row[part]["shares"] for row in rows], each)


def difference(runs: Sequence[Mapping[str, Any]], reference: str, name: str) -> str:
    """The points by which a system is below the reference, picture by picture, with the standard error, and those of each seed."""
    rows = [run["systems"] for run in runs if reference in run["systems"] and name in run["systems"]]
    if name == reference or not rows:
        return "–"
    return with_error([np.subtract(row[reference][AFTER]["shares"], row[name][AFTER]["shares"]) for row in rows], each=True)


def with_error(seeds: Sequence[Sequence[float] | np.ndarray], each: bool) -> str:
    """The mean in per cent of the shares of all pictures, its standard error, the mean of each seed, and the standard error over seeds."""
    shares = np.concatenate([np.asarray(seed) for seed in seeds])
    error = np.std(shares, ddof=1) / math.sqrt(len(shares))
    text = f"{100 * np.mean(shares):.1f} ± {100 * error:.1f}"
    if not each or len(seeds) < 2:
        return text
    means = [100 * float(np.mean(seed)) for seed in seeds]
    return f"{text} ({', '.join(f'{mean:.1f}' for mean in means)}: ± {np.std(means, ddof=1) / math.sqrt(len(means)):.1f})"


def arguments(tasks: Sequence[type[Task]], line: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are for two or three hours of one core."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", choices=[task.name for task in tasks], default=tasks[0].name)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--systems", nargs="+", default=["scaled", "small", "tiles-mean", "global", "last-full", "pooled", "full"])
    parser.add_argument("--once", nargs="*", default=[], help="further systems, with the first seed alone")
    parser.add_argument("--stages", type=stage, nargs="+", default=[Stage(256, 2048, 32), Stage(512, 1024, 16), Stage(1024, 256, 8)],
                        help="SIZE:PICTURES:BATCH of each part of the fine-tuning")  # fmt: skip
    parser.add_argument("--short-size", type=int, default=128, help="side of the small pictures in pixels")
    parser.add_argument("--scaled", type=int, default=224, help="side in pixels to which large pictures are down-scaled")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--short-minutes", type=float, default=6.0, help="minutes of processor time to train on small pictures")
    parser.add_argument(
        "--halved", type=float, default=0.6,
        help="share of the pre-training with pictures of half the side, read with the position table resized, in batches of twice as many",
    )  # fmt: skip
    parser.add_argument("--start-from", help="a task whose small models, in the work folder, these start from, with a new head")
    parser.add_argument("--start-size", type=int, help="side of the pictures of those small models; default: --short-size")
    parser.add_argument("--short-batch", type=int, default=64, help="small pictures in a batch")
    parser.add_argument("--short-rate", type=float, default=2e-3, help="learning rate on small pictures")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of the fine-tuning")
    parser.add_argument("--test-pictures", type=int, default=400, help="held-out pictures after fine-tuning")
    parser.add_argument("--other-pictures", type=int, default=100, help="pictures before fine-tuning, and of the control")
    parser.add_argument("--memory-batch", type=int, default=2, help="pictures in the pass whose memory is measured")
    parser.add_argument("--notes", nargs="+", default=[], help="sentences about this run, for the page")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("far_pictures"), help="folder of small models and measured systems, which later runs take"
    )
    parser.add_argument("--output", type=Path, help="where the table is stored; default: by the task, in scripts/dev/results")
    parser.add_argument("--only", help="measure this system alone and keep it in the work folder; the study starts itself with it")
    return parser.parse_args(line)


def run_study(tasks: Sequence[type[Task]]) -> None:
    """Run the study of one of ``tasks`` and store its table; each system runs in a process of its own."""
    torch.set_num_threads(1)
    args = arguments(tasks)
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        sys.exit("A study starts itself again for each system; run it as a module: python -m scripts.dev.studies.far_digits")
    args.module = spec.name
    task = next(kind for kind in tasks if kind.name == args.task)()
    choices = systems(args.short_size, task.patch, args.layers, args.scaled, task.positions)
    if args.only:
        row = run_system(task, args, args.seeds[0], choices[args.only])
        path = small_folder(task, args, args.seeds[0]) / f"{args.only}.json"
        path.write_text(json.dumps({"name": choices[args.only].name, **row}), encoding="utf-8")
        return
    output = args.output or RESULTS / f"far_{task.name}.json"
    left_out = ("output", "work_dir", "notes", "only", "module")
    settings = {name: value for name, value in vars(args).items() if name not in left_out}
    result: dict[str, Any] = {
        "command": command(args, tasks),
        "settings": {**settings, "patch": task.patch},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}",
        "notes": args.notes,
        "runs": [],
    }
    for seed in args.seeds:
        run: dict[str, Any] = {"seed": seed, "short": pretrained(task, args, seed), "systems": {}}
        print(
            f"seed {seed}: {run['short']['held_out']['accuracy']:.1f} % in small pictures, {run['short']['pictures']:,} pictures",
            flush=True,
        )
        result["runs"].append(run)
        for system in (*args.systems, *(args.once if seed == args.seeds[0] else ())):
            run["systems"][system] = row = run_apart(task, args, seed, system)
            print(summary(row), flush=True)
            output.write_text(stored(result), encoding="utf-8")
            output.with_suffix(".md").write_text(
                page(json.loads(output.read_text()), task.sentence(args.stages[-1].size)), encoding="utf-8"
            )


def stored(result: Mapping[str, Any]) -> str:
    """The result as JSON with each list of numbers on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[-+.\de,\s]+\]", lambda match: " ".join(match[0].split()), text)


def summary(row: Mapping[str, Any]) -> str:
    """A line about what a system has measured."""
    losses = " | ".join(" ".join(f"{loss:.2f}" for loss in part["losses"]) for part in row["stages"])
    scores = " → ".join(f"{row[part]['accuracy']:.1f}" for part in (BEFORE, AFTER))
    return (
        f"{row['name']}: {scores} % (control {row[CONTROL]['accuracy']:.1f} %), {seconds_a_picture(row)[0]:.3f} s a picture, "
        f"{row['MB']:.0f} MB; losses {losses}"
    )


def command(args: argparse.Namespace, tasks: Sequence[type[Task]]) -> str:
    """The command of this run, without what is by default."""
    defaults = vars(arguments(tasks, []))
    words = []
    for name, value in vars(args).items():
        if name in defaults and value != defaults[name] and name not in ("notes", "work_dir", "output"):
            values = value if isinstance(value, list) else [value]
            shown = [":".join(map(str, item)) if isinstance(item, Stage) else str(item) for item in values]
            words.append(f"--{name.replace('_', '-')} {' '.join(shown)}")
    return " ".join(["python -m", args.module, *words])
