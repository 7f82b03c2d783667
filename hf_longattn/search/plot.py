"""The image of a search: what designs are worth against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..drawing import new_figure, save

if TYPE_CHECKING:
    from .design import CostedDesign
    from .result import SearchResult

LABELS = {"mass": "captured mass (mean over layers)", "kl": "−Σ KL of single layers (nats)"}


def draw_search(result: SearchResult, file: Path) -> None:
    """Write an SVG of the best designs by score and the uniform ones. After a stage 2, every design that was tried is next to them."""
    panels = 1 + bool(result.tried)
    figure = new_figure(6.4 * panels, 4.6, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw(axes[0], result, "score", {"best designs": result.front, "the same in every layer": result.uniform})
    for costed in result.uniform:
        if costed.score is not None:
            where = (_cost(result, costed), costed.score)
            axes[0].annotate(str(costed.design.default), where, fontsize=6, xytext=(3, -7), textcoords="offset points")
    axes[0].set_ylabel(LABELS[result.score])
    if result.tried:
        _draw(axes[1], result, "loss", {"least loss for the cost": result.pareto, "tried": result.tried})
        axes[1].set_ylabel("held-out loss (nats)" if result.objective == "loss" else "KL divergence (nats)")
    for axis in axes:
        axis.legend(fontsize=7)
    figure.suptitle(f"{result.model}, {result.target}", fontsize=10)
    save(figure, file)


def _draw(axis: Any, result: SearchResult, value: str, designs: dict[str, Sequence[CostedDesign]]) -> None:
    """Draw a line of the first designs, points of the others and a star for the chosen one, by their score or loss."""
    (line, best), (points, others) = designs.items()
    chosen = {"marker": "*", "s": 160, "color": "tab:red", "zorder": 3}
    for draw, label, costed_designs, style in (
        (axis.step, line, best, {"where": "post", "color": "tab:blue"}),
        (axis.scatter, points, others, {"s": 18, "color": "tab:grey"}),
        (axis.scatter, "chosen", [result.chosen], chosen),
    ):
        drawn = [costed for costed in costed_designs if getattr(costed, value) is not None]
        if drawn:
            draw([_cost(result, costed) for costed in drawn], [getattr(costed, value) for costed in drawn], label=label, **style)
    budget, full = result.budget, result.full_seconds
    if not budget.of_layers:
        limit = budget.value / 1e6 if budget.of_memory else budget.limit(full) / full
        axis.axvline(limit, color="tab:red", linewidth=0.8, linestyle=":", label="budget")
    axis.set_xlabel("memory (MB)" if budget.of_memory else "attention's time, as a share of full attention's")
    axis.set_xscale("log")
    axis.grid(alpha=0.3)


def _cost(result: SearchResult, costed: CostedDesign) -> float:
    return max(costed.bytes or 0, 1) / 1e6 if result.budget.of_memory else costed.seconds / result.full_seconds
