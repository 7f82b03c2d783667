"""Charts of a diagnosis, and attention drawn over a picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from markupsafe import Markup
from torch import Tensor

from ..drawing import HEAT, INK, MARK, Axis, Chart, new_figure
from .diagnosis import CandidateRow, Diagnosis, percent, thousands

LAYERS = ("#6b3fa0", "#4b57b5", "#2f74b8", "#1f8fa8", "#24a584", "#5fae4b", "#a5a52f", "#cf8f2a", "#dd6b3b")
"""Colours of layers from the first to the last, legible on light and dark backgrounds."""


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
        _length_axis(diagnosis),
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


def needle_chart(diagnosis: Diagnosis, count: int) -> Markup:
    """Chart of the attention on the needle against length: ``count`` heads with the largest share, mean of all heads, and equal weights."""
    lengths, values = [row.length for row in diagnosis.lengths], [row.needle() for row in diagnosis.lengths]
    heads = diagnosis.needle_heads(count)
    lines = [
        ("equal weights", "equal", MARK, [row.needle_uniform for row in diagnosis.lengths]),
        ("mean of all heads", "mean", INK, [float(value.nanmean()) for value in values]),
        *(
            (
                f"layer {layer}, head {head}", f"{layer}.{head}", _colour(2 * place + 1, 2 * count + 1),
                [float(value[layer, head]) for value in values],
            )
            for place, (layer, head, _) in enumerate(heads)
        ),
    ]  # fmt: skip
    low = max(1e-6, min((share for *_, shares in lines for share in shares if share > 0), default=0.01) / 1.4)
    title = "Share of the attention on the planted sentence against the length"
    chart = Chart(title, _length_axis(diagnosis), Axis("share of the attention", (low, 1.0), _share), height=280)
    for name, label, colour, shares in lines:
        points = [
            (length, max(share, low), f"{name}, {length:,} tokens: {percent(share)}") for length, share in zip(lengths, shares, strict=True)
        ]
        chart.line(points, label, colour, dashed=label == "equal")
    return chart.svg()


def cost_chart(diagnosis: Diagnosis, rows: Mapping[int, CandidateRow]) -> Markup:
    """Chart of kept attention against cost, with a mark for each of :meth:`~.diagnosis.Diagnosis.candidate_rows`."""
    cheapest = max(1e-4, min(row.cost for row in rows.values()) / 1.3)
    cost = Axis(f"cost at {diagnosis.in_words(diagnosis.last.length)}, of full attention's", (cheapest, 1.0), _share)
    kept = Axis("attention kept", (0.0, 1.0), _share, (0.0, 0.25, 0.5, 0.75, 1.0), log=False)
    chart = Chart("Attention kept against cost, every mechanism", cost, kept, height=340)
    chart.line([(rows[number].cost, rows[number].mass, str(rows[number].candidate)) for number in diagnosis.front()], "", HEAT)
    for row in rows.values():
        title = f"{row.place}. {row.candidate}: keeps {percent(row.mass)}, costs {percent(row.cost)} of full attention"
        chart.mark(min(row.cost, 1.0), row.mass, str(row.place), title, strong=row.on_front, chosen=row.recommended)
    return chart.svg()


def attention_on_picture(pixels: Tensor, attention: Tensor) -> str:
    """Heat map of the ``attention (rows, columns)`` on the patches of a picture ``(height, width, 3)``, as a data URL of a PNG."""
    height, width = pixels.shape[:2]
    figure = new_figure(4 * width / max(height, width), 4 * height / max(height, width), dpi=120)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    extent = (0, width, height, 0)
    axis.imshow(pixels.numpy(), extent=extent)
    axis.imshow(attention.numpy(), extent=extent, cmap="magma", alpha=0.6, interpolation="nearest")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _colour(number: int, count: int) -> str:
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    return to_hex(LinearSegmentedColormap.from_list("layers", LAYERS)(number / max(1, count - 1)))


def _share(value: float) -> str:
    return f"{100 * value:g} %"


def _length_axis(diagnosis: Diagnosis) -> Axis:
    lengths = [row.length for row in diagnosis.lengths]
    return Axis(f"{diagnosis.unit} in the {diagnosis.input_noun}", (lengths[0], max(lengths[-1], lengths[0] + 1)), thousands, lengths)
