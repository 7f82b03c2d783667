"""Figures of an audit: effective tokens against length, attention over an image, and what reached what."""

from __future__ import annotations

import base64
import io
from typing import Any

from markupsafe import Markup
from torch import Tensor

from ..drawing import MARK, Axis, Chart, new_figure
from .diagnosis import Diagnosis, Image, thousands
from .verdict import ReachAudit

LAYERS = ("#6b3fa0", "#4b57b5", "#2f74b8", "#1f8fa8", "#24a584", "#5fae4b", "#a5a52f", "#cf8f2a", "#dd6b3b")
"""Colours of layers from the first to the last, legible on light and dark backgrounds."""
CHANGES = (
    ("white", "must not change, did not"),
    ("crimson", "must not change, did"),
    ("lightsteelblue", "may change, did not"),
    ("royalblue", "may change, did"),
)
"""Colours of :func:`reach_drawing`, by changed + 2 · expected."""


def spread_chart(diagnosis: Diagnosis) -> Markup:
    """Chart of effective tokens against length, with a line for each layer."""
    unit = diagnosis.unit
    lengths = [row.length for row in diagnosis.lengths]
    means = [row.number("effective_tokens").nanmean(1).tolist() for row in diagnosis.lengths]
    count = len(means[0])
    low = max(1.0, min(min(row) for row in means) / 1.5)
    order = sorted(range(count), key=lambda layer: means[-1][layer])
    labelled = set(range(count)) if count <= 12 else {0, count - 1, order[0], order[-1]}
    chart = Chart(
        f"Effective {unit} against the length of the {diagnosis.input_noun}, by layer",
        Axis(f"{unit} in the {diagnosis.input_noun}", (lengths[0], max(lengths[-1], lengths[0] + 1)), thousands, lengths),
        Axis(f"effective {unit}", (low, lengths[-1]), "{:,.0f}".format),
    )
    chart.line([(length, length, f"all {diagnosis.in_words(length)} equally") for length in lengths], "all", MARK, dashed=True)
    for layer in range(count):
        points = [
            (length, row[layer], f"layer {layer}, {diagnosis.in_words(length)}: {row[layer]:,.1f} effective {unit}")
            for length, row in zip(lengths, means, strict=True)
        ]
        chart.line(points, str(layer) if layer in labelled else "", _colour(layer, count))
    return chart.svg()


def attention_on_image(image: Image, attention: Tensor) -> str:
    """Heat map of the ``attention (rows, columns)`` on the patches of an image."""
    pixels = image.pixels
    height, width = pixels.shape[:2]
    figure = new_figure(4 * width / max(height, width), 4 * height / max(height, width), dpi=120)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    extent = (0, width, height, 0)
    axis.imshow(pixels.numpy(), extent=extent)
    axis.imshow(attention.numpy(), extent=extent, cmap="magma", alpha=0.6, interpolation="nearest")
    return _address(figure)


def reach_drawing(audit: ReachAudit) -> str:
    """A panel for each of the first runs, with a row per layer and a column per token; for embeddings, a row of probes."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    kinds = audit.changed.int() + 2 * audit.expected.int()  # neither, changed only, expected only, both
    pooled = kinds.shape[-1] == 1
    panels = kinds[:, :, 0].t()[None] if pooled else kinds
    colours = ListedColormap([colour for colour, _ in CHANGES])
    figure = new_figure(max(3.6 * len(panels), 6), 1.6 + 0.22 * panels.shape[1], layout="constrained", dpi=120)
    for number, (axis, panel) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        axis.imshow(panel.numpy(), cmap=colours, vmin=-0.5, vmax=3.5, aspect="auto", interpolation="nearest")
        axis.set_yticks(range(len(audit.stages)), [stage.stage for stage in audit.stages], fontsize=7)
        if pooled:
            axis.set_xticks(range(len(audit.probes)), [str(probe) for probe in audit.probes], fontsize=6, rotation=90)
        else:
            axis.set_title(f"run {number + 1} of {audit.runs}", fontsize=8)
        axis.set_xlabel("token replaced" if pooled else "output")
    handles = [Patch(facecolor=colour, edgecolor="grey", label=label) for colour, label in CHANGES]
    figure.legend(handles=handles, loc="outside lower center", ncol=2, fontsize=7)
    return _address(figure)


def _address(figure: Any) -> str:
    """A figure as a data URL of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _colour(number: int, count: int) -> str:
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("layers", LAYERS)(number / max(1, count - 1)))
