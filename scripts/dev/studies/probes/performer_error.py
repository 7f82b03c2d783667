"""Performer's error against softmax attention by the number of features, beside what theory says (Choromanski et al. 2021, lemma 2).

For independent directions the positive features estimate K(x, y) = exp(x·y) with

    E[(K̂ - K)²] = exp(|x + y|²) K² (1 - exp(-|x + y|²)) / m

Orthogonal directions stay below it; the error of the attention output falls with 1/√m as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_longattn import attend, build_mechanism
from scripts.dev.benchmarks.drawing import svg

COUNTS = (16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class FeatureError:
    """features: m.
    kernel: root mean square of K̂ - K over pairs and draws.
    theory: the same by lemma 2, for independent directions.
    output: root mean square difference of the attention outputs.
    """

    features: int
    kernel: float
    theory: float
    output: float


@torch.no_grad()
def measure_performer_error(
    features: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024),
    draws: int = 16,
    tokens: int = 256,
    head_dim: int = 64,
    spread: float = 0.35,
) -> list[FeatureError]:
    """Errors on random queries and keys whose entries have the standard deviation ``spread``, averaged over ``draws`` of the directions."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, tokens, head_dim, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    v = torch.randn(1, 1, tokens, head_dim, generator=generator, dtype=torch.float64)
    x, y = (one[0, 0] * head_dim**-0.25 for one in (q, k))
    exact, apart = (x @ y.T).exp(), (x[:, None] + y).square().sum(-1)
    variance = (apart.exp() * exact.square() * (1 - (-apart).exp())).mean().item()
    expected = attend(q, k, v, "full")
    found = []
    for count in features:
        module = build_mechanism("performer", num_heads=1, head_dim=head_dim, num_features=count, redraw_interval=0).double()
        kernel = output = 0.0
        for seed in range(1, draws + 1):
            directions = module.directions(seed)  # type: ignore[operator]
            phi_x, phi_y = ((one @ directions.T - one.square().sum(-1, keepdim=True) / 2).exp() for one in (x, y))
            kernel += ((phi_x @ phi_y.T) / count - exact).square().mean().item() / draws
            output += (attend(q, k, v, module, seed=seed) - expected).square().mean().item() / draws
        found.append(FeatureError(count, math.sqrt(kernel), math.sqrt(variance / count), math.sqrt(output)))
    return found


def performer_error_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table."""
    lines = ["| features | error of the kernel | by theory, independent directions | error of the output |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r['features']} | {r['kernel']:.4f} | {r['theory']:.4f} | {r['output']:.4f} |" for r in rows)])


def plot_performer_error(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Draw the errors over the number of features into ``path`` (SVG).

    Raises:
        LongAttentionError: when matplotlib is not installed.
    """
    with svg(path) as (_, (panel,)):
        counts = [row["features"] for row in rows]
        panel.plot(counts, [row["kernel"] for row in rows], marker="o", label="kernel, orthogonal directions")
        panel.plot(counts, [row["theory"] for row in rows], linestyle="--", label="kernel, independent, by theory")
        panel.plot(counts, [row["output"] for row in rows], marker="o", label="attention output")
        panel.set(xscale="log", yscale="log", xlabel="features", ylabel="root mean square error", xticks=counts, xticklabels=counts)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    return path
