"""Draws attention patterns: one row of panels per mechanism, one panel per head if heads differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LongAttentionError
from ..mechanisms import Mechanism

__all__ = ["draw_patterns", "name_layers"]


def name_layers(mechanisms: Sequence[Mechanism]) -> dict[str, Mechanism]:
    """Mechanisms by name, with equal layers grouped: "layers 0, 2: window window=64"."""
    groups: dict[str, list[int]] = {}
    for index, mechanism in enumerate(mechanisms):
        text = " ".join([mechanism.name, *(f"{name}={value}" for name, value in mechanism.options.to_dict().items())])
        groups.setdefault(text, []).append(index)
    return {f"{_range(indices)}: {text}": mechanisms[indices[0]] for text, indices in groups.items()}


def pattern(mechanism: Mechanism, length: int, causal: bool) -> Tensor:
    """(H, N, N) weights for random queries and keys, seeded."""
    generator = torch.Generator().manual_seed(0)
    q, k = 0.5 * torch.randn(2, 1, mechanism.num_heads, length, mechanism.head_dim, generator=generator)
    with torch.no_grad():
        return mechanism.weights(q, k, causal=causal)[0]


def draw_patterns(mechanisms: Mapping[str, Mechanism], *, length: int, causal: bool | Sequence[bool], file: Path) -> None:
    """Write an image: a row per query, a column per key, darker for larger weights, white where nothing is visible.

    ``causal`` selects the form, for all mechanisms or for each.

    Raises:
        LongAttentionError: matplotlib is not installed, or does not support the file's extension.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LongAttentionError("Drawing needs matplotlib; type pip install matplotlib.") from error
    forms = [causal] * len(mechanisms) if isinstance(causal, bool) else causal
    rows = {name: _different_heads(pattern(one, length, form)) for (name, one), form in zip(mechanisms.items(), forms, strict=True)}
    columns = max(len(panels) for panels in rows.values())
    beside = columns == 1  # single panels stand side by side
    shape = (1, len(rows)) if beside else (len(rows), columns)
    figure = Figure(figsize=(max(3.4 * shape[1], 4.2), 3.6 * shape[0]), layout="constrained")
    grid = figure.subplots(*shape, squeeze=False)
    for axes, (name, panels) in zip(grid.T if beside else grid, rows.items(), strict=True):
        for number, axis in enumerate(axes):
            if number >= len(panels):
                axis.set_axis_off()
                continue
            weights = panels[number]
            shown = (weights / weights.amax(-1, keepdim=True)).masked_fill(weights == 0, float("nan")) ** 0.5
            axis.imshow(shown.numpy(), cmap="viridis_r", interpolation="nearest")
            axis.set(xlabel="key", ylabel="query")
            axis.set_title(name if len(panels) == 1 else f"{name}, head {number}", fontsize=8, wrap=True)
    try:
        figure.savefig(file, dpi=120)
    except ValueError as error:
        raise LongAttentionError(f"Cannot draw into {str(file)!r}: {error}.") from error


def _different_heads(weights: Tensor) -> list[Tensor]:
    """The first head alone when all heads see the same keys."""
    visible = weights > 0
    return [weights[0]] if bool((visible == visible[:1]).all()) else list(weights)


def _range(indices: list[int]) -> str:
    if len(indices) == 1:
        return f"layer {indices[0]}"
    together = indices == list(range(indices[0], indices[-1] + 1))
    return f"layers {indices[0]}–{indices[-1]}" if together else f"layers {', '.join(map(str, indices))}"
