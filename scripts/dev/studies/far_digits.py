"""Pictures whose label needs two places that lie far apart: a small ViT that read small pictures, converted to large ones.

Two of scikit-learn's 1,797 handwritten digits are drawn on a crop of one of its photographs, at least half the picture's side apart. The
label is their sum modulo 10 (``--label sum``), or whether the red one is smaller than, equal to or larger than the blue one
(``compare``). In the control pictures one digit is left out, and no model can be better than chance.

A small ViT learns the task in pictures of ``--short-size`` pixels. Every system starts from it and is fine-tuned on the same large
pictures: shown down-scaled, shown as tiles whose logits are averaged, and converted with mechanisms on a grid or with full attention, the
upper bound.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from hf_longattn.families import FAMILIES

DIGIT_PIXELS = 16
TRAINING_DIGITS = 1_400
"""The first digits are drawn in training pictures, the others, of other writers, in those that are measured."""
CLASSES = {"sum": 10, "compare": 3}
LOG = "log.json"
RESULTS = Path("scripts/dev/results")
WARMUP = 20
"""Steps in which the rate rises."""
SINGLE_DIGITS, EASY_LOSS = 0.2, 0.5
"""Small pictures have one digit until the loss is below this, and then this share of them; their label is that of a sum with 0."""


class Drawing(NamedTuple):
    """How pictures are drawn: their side in pixels, what the label says, and which digits are drawn."""

    size: int
    label: str
    held_out: bool = False
    blank: bool = False


class Digits:
    """Draws batches of pictures from scikit-learn's digits and photographs."""

    def __init__(self) -> None:
        digits = load_digits()
        self.names = digits.target
        self.strokes = [
            np.asarray(Image.fromarray((15.9 * image).astype(np.uint8)).resize((DIGIT_PIXELS, DIGIT_PIXELS), Image.Resampling.BILINEAR))
            for image in digits.images
        ]
        self.photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]

    def batch(self, drawing: Drawing, count: int, random: np.random.Generator, single: float = 0.0) -> tuple[Tensor, Tensor]:
        """Pictures ``(count, 3, size, size)`` with values from -1 to 1, and their labels ``(count,)``.

        Args:
            single: the share of pictures with one digit, whose label counts the other as 0.
        """
        pictures, labels = zip(*(self._picture(drawing, random, random.random() < single) for _ in range(count)), strict=True)
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        return pixels / 127.5 - 1, torch.tensor(labels)

    def _picture(self, drawing: Drawing, random: np.random.Generator, single: bool) -> tuple[np.ndarray, int]:
        chosen, label = self._two_digits(drawing, random)
        picture = self._texture(drawing.size, random)
        places = far_places(drawing.size, random)
        tints = ((255, 255, 255),) * 2 if drawing.label == "sum" else ((255, 60, 60), (60, 120, 255))
        left_out = int(random.integers(2)) if single or drawing.blank else -1
        for number, (digit, (row, column), tint) in enumerate(zip(chosen, places, tints, strict=True)):
            if number != left_out:
                opacity = self.strokes[digit][..., None] / 255.0
                cells = picture[row : row + DIGIT_PIXELS, column : column + DIGIT_PIXELS]
                cells[:] = cells * (1 - opacity) + np.array(tint) * opacity
        if single:
            label = int(self.names[chosen[1 - left_out]])
        return picture, label

    def _two_digits(self, drawing: Drawing, random: np.random.Generator) -> tuple[tuple[int, int], int]:
        """Two digits and their label, of which each is as frequent as any other."""
        low, high = (TRAINING_DIGITS, len(self.names)) if drawing.held_out else (0, TRAINING_DIGITS)
        wanted = int(random.integers(CLASSES[drawing.label]))
        while True:
            first, second = (int(number) for number in random.integers(low, high, 2))
            one, two = int(self.names[first]), int(self.names[second])
            label = (one + two) % 10 if drawing.label == "sum" else 1 + (one > two) - (one < two)
            if label == wanted:
                return (first, second), label

    def _texture(self, size: int, random: np.random.Generator) -> np.ndarray:
        """A dark crop of a photograph, ``(size, size, 3)``."""
        photograph = self.photographs[int(random.integers(len(self.photographs)))]
        side = int(random.integers(size // 2, min(photograph.size) + 1) if size < 2 * min(photograph.size) else min(photograph.size))
        left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
        crop = photograph.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        return np.asarray(crop).astype(np.float32) * 0.5


def far_places(size: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """The upper left corners of two digits, at least half the picture's side apart, on multiples of half a digit."""
    step = DIGIT_PIXELS // 2
    while True:
        rows, columns = (step * random.integers(0, size // step - 1, 2) for _ in range(2))
        if math.hypot(rows[0] - rows[1], columns[0] - columns[1]) >= size / 2:
            return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]


class System(NamedTuple):
    """A way to read large pictures: loads the model of a folder, and shows it pixels."""

    load: Callable[[Path], nn.Module]
    logits: Callable[[nn.Module, Tensor], Tensor]


def systems(size: int, short: int, patch: int, layers: int) -> dict[str, System]:
    """The systems that are compared, by name."""
    window = short // patch

    def plain(folder: Path) -> nn.Module:
        return ViTForImageClassification.from_pretrained(folder)

    def converted(attention: dict[str, Any], positions: str) -> System:
        def load(folder: Path) -> nn.Module:
            settings: dict[str, Any] = {"long_attention": attention, "long_image_size": [size, size], "position_extension": positions}
            return FAMILIES["vit"].model_class("ViTForImageClassification").from_pretrained(folder, **settings)

        return System(load, lambda model, pixels: model(pixels).logits)

    def tiles(model: nn.Module, pixels: Tensor) -> Tensor:
        parts = pixels.unflatten(3, (-1, short)).unflatten(2, (-1, short)).permute(0, 2, 4, 1, 3, 5)
        return model(parts.flatten(0, 2)).logits.unflatten(0, (len(pixels), -1)).mean(1)

    def scaled(model: nn.Module, pixels: Tensor) -> Tensor:
        return model(nn.functional.interpolate(pixels, (short, short), mode="bilinear", antialias=True)).logits

    windows = {"mechanism": "window2d", "window": window}
    pooled = {"mechanism": "segmented", "block_size": window * window, "integration": "pooled", "order": f"tiles:{window}x{window}"}
    return {
        f"down-scaled to {short} px": System(plain, scaled),
        f"tiles of {short} px, mean of their logits": System(plain, tiles),
        "window2d, the last layer full": converted({**windows, "layers": {layers - 1: {"mechanism": "full"}}}, "tile"),
        "segmented in tiles, pooled": converted(pooled, "tile"),
        "full attention": converted({"mechanism": "full"}, "interpolate"),
        "window2d": converted(windows, "tile"),
    }


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, in per cent (Wilson 1927)."""
    z, share = 1.96, right / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return tuple(100 * (centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))  # type: ignore[return-value]


def measured(model: nn.Module, logits: Callable[..., Tensor], batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracy in per cent with its interval."""
    model.eval()
    right = count = 0
    with torch.no_grad():
        for pixels, labels in batches:
            right += int((logits(model, pixels).argmax(-1) == labels).sum())
            count += len(labels)
    return {"accuracy": 100 * right / count, "interval": wilson(right, count), "right": right, "n": count}


def trained(
    model: nn.Module,
    logits: Callable[..., Tensor],
    batches: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    minutes: float,
    losses: list[float],
) -> dict[str, Any]:
    """Train for ``steps`` batches, or as many as take ``minutes`` of processor time; the rate falls to zero by then.

    Args:
        losses: to which the loss of each step is appended.

    Returns:
        The number of steps, their mean loss in the last tenth, and seconds of processor time for the model alone, without drawing.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    seconds, started, step = 0.0, time.process_time(), 0
    while (share := max(step / steps, (time.process_time() - started) / (60 * minutes))) < 1:
        pixels, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP) * (1 - share)
        begun = time.process_time()
        loss = nn.functional.cross_entropy(logits(model, pixels), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.process_time() - begun
        losses.append(loss.item())
        step += 1
    return {"steps": step, "loss": float(np.mean(losses[-max(1, step // 10) :])), "seconds": seconds}


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


def batches_of(
    digits: Digits, drawing: Drawing, count: int, seed: int, limit: int = 0, single: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ``count`` pictures; ``limit`` pictures in all, 0 = without end."""
    random = np.random.default_rng(seed)
    drawn = 0
    while not limit or drawn < limit:
        size = min(count, limit - drawn) if limit else count
        yield digits.batch(drawing, size, random, single)
        drawn += size


def pretrained(digits: Digits, args: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Train a small ViT on small pictures and save it in ``folder`` with its log, which is returned; an earlier run's is taken."""
    if (folder / LOG).exists():
        earlier: dict[str, Any] = json.loads((folder / LOG).read_text())
        return earlier
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=args.width // 32, intermediate_size=4 * args.width,
        image_size=args.short_size, patch_size=args.patch, num_labels=CLASSES[args.label], hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = ViTForImageClassification(config)
    drawing, random, losses = Drawing(args.short_size, args.label), np.random.default_rng(seed), [math.inf]

    def logits(model: nn.Module, pixels: Tensor) -> Tensor:
        return model(pixels).logits

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        single = 1.0 if args.label == "sum" else 0.0
        while True:
            if np.mean(losses[-20:]) < EASY_LOSS:
                single = min(single, SINGLE_DIGITS)
            yield digits.batch(drawing, 64, random, single)

    log = trained(model, logits, batches(), 10**9, args.short_rate, args.short_minutes, losses)
    log["held_out"] = measured(model, logits, batches_of(digits, drawing._replace(held_out=True), 64, 10_000 + seed, args.test_pictures))
    model.save_pretrained(folder)
    (folder / LOG).write_text(json.dumps(log), encoding="utf-8")
    return log


def run_seed(digits: Digits, args: argparse.Namespace, seed: int, store: Callable[[dict[str, Any]], None]) -> None:
    """Every system with one seed; ``store`` is called with all that is known after each."""
    folder = args.work_dir / f"{args.label}-{args.short_size}-{args.width}-{args.layers}-{seed}"
    short = pretrained(digits, args, seed, folder)
    print(f"seed {seed}, small pictures: {short['held_out']['accuracy']:.1f} % after {short['steps']} steps", flush=True)
    rows: dict[str, Any] = {}
    for name, system in systems(args.size, args.short_size, args.patch, args.layers).items():
        torch.manual_seed(seed)
        model, memory, drawing = system.load(folder), PeakMemory(), Drawing(args.size, args.label)

        def test(blank: bool = False, model: nn.Module = model, system: System = system, drawing: Drawing = drawing) -> dict[str, Any]:
            shown = drawing._replace(held_out=True, blank=blank)
            return measured(model, system.logits, batches_of(digits, shown, args.batch, 20_000 + seed, args.test_pictures))

        before, steps = test(), math.ceil(args.pictures / args.batch)
        batches = batches_of(digits, drawing, args.batch, 30_000 + seed, single=args.single if args.label == "sum" else 0.0)
        log = trained(model, system.logits, batches, steps, args.rate, args.minutes, [])
        rows[name] = {**log, "MB": memory(), "before": before, "after": test(), "one digit blanked": test(blank=True)}
        after, blanked = (rows[name][part]["accuracy"] for part in ("after", "one digit blanked"))
        print(
            f"{name}: {before['accuracy']:.1f} → {after:.1f} % ({blanked:.1f} % blanked); {log['steps']} steps, {log['seconds']:.0f} s",
            flush=True,
        )
        store({"seed": seed, "short": short, "systems": rows})


def pooled_accuracy(runs: Sequence[Mapping[str, Any]], name: str, part: str) -> dict[str, Any]:
    """The accuracy over the pictures of all seeds."""
    parts = [run["systems"][name][part] for run in runs]
    right, count = sum(cell["right"] for cell in parts), sum(cell["n"] for cell in parts)
    return {"accuracy": 100 * right / count, "interval": wilson(right, count)}


def page(result: Mapping[str, Any]) -> str:
    """The stored result as a page of markdown."""
    settings, runs = result["settings"], result["runs"]
    size, small = settings["size"], settings["short_size"]
    label = "the sum of the two digits modulo 10" if settings["label"] == "sum" else "which of the two digits is larger"
    scores = ", ".join(f"{run['short']['held_out']['accuracy']:.1f} %" for run in runs)
    lines = [
        f"Two handwritten digits of {DIGIT_PIXELS} pixels at least {size // 2} pixels apart in a picture of {size} × {size} pixels "
        f"({(size // settings['patch']) ** 2:,} patches); the label is {label}, chance {100 / CLASSES[settings['label']]:.0f} %. "
        f"A ViT of {settings['layers']} layers and width {settings['width']} learned it in pictures of {small} × {small} pixels "
        f"({scores} there), and every system was fine-tuned on at most {settings['pictures']:,} large pictures. "
        f"{len(runs)} seed{'s' if len(runs) > 1 else ''}, {settings['test_pictures']:,} held-out pictures each; 95 % intervals are "
        "Wilson's. Seconds of processor time for a training picture, without drawing it; MB: the most memory beyond the loaded model.",
        "",
        "| system | before fine-tuning | after | one digit blanked | pictures | s a picture | MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in runs[-1]["systems"]:
        cells = []
        for part in ("before", "after", "one digit blanked"):
            score = pooled_accuracy(runs, name, part)
            low, high = score["interval"]
            cells.append(f"{score['accuracy']:.1f} ({low:.1f}–{high:.1f})")
        rows = [run["systems"][name] for run in runs]
        pictures = int(np.median([row["steps"] for row in rows])) * settings["batch"]
        seconds = sum(row["seconds"] for row in rows) / sum(row["steps"] for row in rows) / settings["batch"]
        cells += [f"{pictures:,}", f"{seconds:.3f}", f"{max(row['MB'] for row in rows):.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in result["notes"]), f"- Command: `{result['command']}`", ""])


def arguments(line: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; its defaults are for a machine that has an hour."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--label", choices=list(CLASSES), default="sum")
    parser.add_argument("--size", type=int, default=512, help="side of the large pictures in pixels")
    parser.add_argument("--short-size", type=int, default=64, help="side of the small pictures in pixels")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--short-minutes", type=float, default=20.0, help="minutes of processor time to train on small pictures")
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes of processor time, at most, to fine-tune a system")
    parser.add_argument("--pictures", type=int, default=4_000, help="large pictures to fine-tune on, at most")
    parser.add_argument("--single", type=float, default=0.2, help="share of the training pictures that have one digit, which is their sum")
    parser.add_argument("--test-pictures", type=int, default=1_000)
    parser.add_argument("--batch", type=int, default=16, help="large pictures in a batch")
    parser.add_argument("--short-rate", type=float, default=1e-3, help="learning rate on small pictures")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of the fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--notes", nargs="+", default=[], help="sentences about this run, for the page")
    parser.add_argument("--work-dir", type=Path, default=Path("far_digits"), help="folder of the small models, which later runs take")
    parser.add_argument("--output", type=Path, default=RESULTS / "far_digits.json")
    return parser.parse_args(line)


def main() -> None:
    """Run the study and store its table."""
    args = arguments()
    torch.set_num_threads(args.threads)
    settings = {name: value for name, value in vars(args).items() if name not in ("output", "work_dir", "notes")}
    defaults = vars(arguments([]))
    changed = [(name, value) for name, value in settings.items() if value != defaults[name]]
    words = [f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in changed]
    digits = Digits()
    result: dict[str, Any] = {
        "command": " ".join(["python -m scripts.dev.studies.far_digits", *words]),
        "settings": settings,
        "machine": f"{platform.machine()}, {args.threads} thread{'s' if args.threads > 1 else ''}, torch {torch.__version__}",
        "notes": args.notes,
        "runs": [],
    }
    for seed in args.seeds:
        finished = list(result["runs"])

        def store(run: dict[str, Any], finished: list[dict[str, Any]] = finished) -> None:
            result["runs"] = [*finished, run]
            args.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
            args.output.with_suffix(".md").write_text(page(result), encoding="utf-8")

        run_seed(digits, args, seed, store)


if __name__ == "__main__":
    main()
