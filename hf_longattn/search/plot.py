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
    _draw_scores(axes[0], result)
    if result.tried:
        _draw_losses(axes[1], result)
    figure.suptitle(f"{result.model}, {result.target}", fontsize=10)
    save(figure, file)


def _draw_scores(axis: Any, result: SearchResult) -> None:
    if result.front:
        axis.step(
            _costs(result, result.front), [costed.score for costed in result.front], where="post", color="tab:blue", label="best designs"
        )
    judged = [costed for costed in result.uniform if costed.score is not None]
    axis.scatter(_costs(result, judged), [costed.score for costed in judged], color="tab:grey", s=22, label="the same in every layer")
    for costed in judged:
        axis.annotate(
            str(costed.design.default), (_costs(result, [costed])[0], costed.score), fontsize=6, xytext=(3, -7), textcoords="offset points"
        )
    if result.chosen.score is not None:
        axis.scatter(_costs(result, [result.chosen]), [result.chosen.score], marker="*", s=160, color="tab:red", zorder=3, label="chosen")
    _label_axes(axis, result, LABELS[result.score])


def _draw_losses(axis: Any, result: SearchResult) -> None:
    axis.scatter(_costs(result, result.tried), [costed.loss for costed in result.tried], s=14, color="tab:grey", label="tried")
    best = result.pareto
    axis.step(_costs(result, best), [costed.loss for costed in best], where="post", color="tab:blue", label="least loss for the cost")
    if result.chosen.loss is not None:
        axis.scatter(_costs(result, [result.chosen]), [result.chosen.loss], marker="*", s=160, color="tab:red", zorder=3, label="chosen")
    _label_axes(axis, result, "held-out loss (nats)" if result.objective == "loss" else "KL divergence (nats)")


def _label_axes(axis: Any, result: SearchResult, name: str) -> None:
    budget = result.budget
    memory = budget is not None and budget.of_memory
    if budget is not None:
        limit = budget.value / 1e6 if memory else budget.limit(result.full_seconds) / result.full_seconds
        axis.axvline(limit, color="tab:red", linewidth=0.8, linestyle=":", label="budget")
    axis.set_xlabel("memory (MB)" if memory else "attention's time, as a share of full attention's")
    axis.set_ylabel(name)
    axis.set_xscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _costs(result: SearchResult, designs: Sequence[CostedDesign]) -> list[float]:
    if result.budget is not None and result.budget.of_memory:
        return [max(costed.bytes or 0, 1) / 1e6 for costed in designs]
    return [costed.seconds / result.full_seconds for costed in designs]
