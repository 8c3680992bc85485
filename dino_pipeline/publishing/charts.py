"""How are a report's pictures drawn: once each, as SVG in the colours of the page's theme and as PNG?"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dino_pipeline.cards.document import DataTable, Picture
from dino_pipeline.display import escape_html, visible
from dino_pipeline.evaluation.scores import Figure as ScoreFigure
from dino_pipeline.publishing.run_texts import Histogram

INK, MUTED, LINES = "#010203", "#5b5c5d", "#c7c8c9"
"""Placeholders that `_themed` replaces with the colours of the page's theme."""
THEME = {INK: "ink", MUTED: "muted", LINES: "line"}
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255")
"""Colour-blind readers can tell them apart, on light and dark backgrounds (Paul Tol's bright and muted schemes)."""
MAIN, DROPPED = COLOURS[0], COLOURS[1]
WIDTH = 6.4
"""In inches."""
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
    "svg.fonttype": "none",
    "axes.edgecolor": LINES,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": LINES,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw_picture(
    name: str,
    title: str,
    numbers: DataTable,
    draw: Callable[[Sequence[Axes]], None],
    *,
    height: float,
    panels: int = 1,
) -> Picture:
    """Return a picture; see `Picture`.

    Args:
        draw: fills the panels, which are side by side.
        height: in inches; the width is `WIDTH`.
    """
    with rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the PNG's font lacks
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots(1, panels, squeeze=False)[0])
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        figure.set_layout_engine("none")  # saving the SVG has computed the layout
        figure.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return Picture(name, title, _themed(svg.getvalue(), title, name), png.getvalue(), numbers)


def _themed(svg: str, title: str, name: str) -> str:
    """Return an SVG as an element of the page: without prologue, in the theme's colours, titled for screen readers."""

    def themed_tag(tag: re.Match[str]) -> str:
        changed = tag[0]
        for colour, name_in_theme in THEME.items():
            changed = changed.replace(colour, f"var(--{name_in_theme})")
        return re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\1{name}-", changed)  # ids must differ between pictures

    drawing = re.sub(r"<[^>]*>", themed_tag, svg[svg.index("<svg") :])  # labels, between tags, stay
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape_html(title)}"', 1)


def _name_rows(panel: Axes, names: Sequence[str]) -> None:
    """Write the names of horizontal bars, the first on top."""
    panel.set_yticks(range(len(names)), [visible(name, 40) for name in names])
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)


LEGEND_WIDTH = 66
"""In characters."""
LONGEST_LABEL = 24
"""In characters."""


def legend_height(labels: Iterable[str]) -> float:
    """Return the height of a legend, in inches."""
    names = list(labels)
    return 0.2 * -(-len(names) // _legend_columns(names))


def _legend_columns(labels: Sequence[str]) -> int:
    return max(1, LEGEND_WIDTH // (8 + max(len(visible(label, LONGEST_LABEL)) for label in labels)))


def _add_legend(panel: Axes, drawn: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend above a panel."""
    names = [f" {visible(label, LONGEST_LABEL)}" for label in labels]  # matplotlib hides names that begin with _
    columns = _legend_columns(labels)
    panel.legend(drawn, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9)


def draw_funnel(panels: Sequence[Axes], steps: Sequence[tuple[str, int, int]]) -> None:
    """Draw the rows that each step leaves and drops, a bar for each (name, rows left, rows dropped)."""
    (panel,) = panels
    longest = max(left + dropped for _, left, dropped in steps)
    for row, (_, left, dropped) in enumerate(steps):
        panel.barh(row, left, color=MAIN, height=0.7)
        panel.barh(row, dropped, left=left, color=DROPPED, height=0.7)
        numbers = f"{left:,}" + (f"  (−{dropped:,})" if dropped else "")
        panel.text(left + dropped + longest / 100, row, numbers, va="center", fontsize=8)
    _name_rows(panel, [name for name, *_ in steps])
    panel.set_xlim(0, longest * 1.3)
    panel.set_xlabel("rows left (blue), dropped in this step (red)")


def draw_bars(
    panels: Sequence[Axes], series: Mapping[str, Mapping[str, int]], labels: Sequence[str], unit: str
) -> None:
    """Draw counts by label, with a bar for each series."""
    (panel,) = panels
    height = 0.8 / len(series)
    for index, (counts, colour) in enumerate(zip(series.values(), cycle(COLOURS), strict=False)):
        positions = [row - 0.4 + height * (index + 0.5) for row in range(len(labels))]
        bars = panel.barh(positions, [counts.get(label, 0) for label in labels], height * 0.9, color=colour)
        panel.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    _name_rows(panel, labels)
    panel.set_xlabel(unit)
    panel.margins(x=0.15)
    _add_legend(panel, panel.containers, list(series))


def draw_stacks(panels: Sequence[Axes], parts: Mapping[str, Sequence[float]], names: Sequence[str], unit: str) -> None:
    """Draw a bar for each name, cut into parts; each part has a value for every name."""
    (panel,) = panels
    starts = [0.0] * len(names)
    for values, colour in zip(parts.values(), cycle(COLOURS), strict=False):
        panel.barh(range(len(names)), values, 0.7, left=starts, color=colour)
        starts = [start + value for start, value in zip(starts, values, strict=True)]
    _name_rows(panel, names)
    panel.set_xlim(0, 100)
    panel.set_xlabel(unit)
    _add_legend(panel, panel.containers, list(parts))


def draw_histogram(panels: Sequence[Axes], histogram: Histogram, unit: str) -> None:
    """Draw the distribution of a value by label, in percent of the label's values."""
    (panel,) = panels
    drawn = []
    styles = cycle(("-", "--", "-."))
    for counts, colour, style in zip(histogram.counts.values(), cycle(COLOURS), styles, strict=False):
        shares = [100 * count / max(sum(counts), 1) for count in counts]
        drawn.append(panel.stairs(shares, histogram.edges, color=colour, linewidth=1.8, linestyle=style))
    panel.set_xlabel(unit)
    panel.set_ylabel("% of the label's")
    panel.grid(axis="y", linewidth=0.5)
    _add_legend(panel, drawn, list(histogram.counts))


def draw_boxes(panels: Sequence[Axes], quantiles: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw box plots, a panel for each measure and a box for each label.

    A box shows the 5th, 25th, 50th, 75th and 95th percentile.
    """
    keys = ("whislo", "q1", "med", "q3", "whishi")
    lowest = min((values[0] for by_label in quantiles.values() for values in by_label.values()), default=0.0)
    for index, (panel, (measure, by_label)) in enumerate(zip(panels, quantiles.items(), strict=True)):
        boxes = [{**dict(zip(keys, values, strict=True)), "fliers": []} for values in by_label.values()]
        panel.bxp(
            boxes,
            positions=range(len(boxes)),
            orientation="horizontal",
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": MAIN, "edgecolor": MAIN},
            medianprops={"color": INK, "linewidth": 2},
            whiskerprops={"color": MAIN, "linewidth": 2},
            capprops={"color": MAIN},
        )
        _name_rows(panel, list(by_label) if index == 0 else [""] * len(by_label))
        panel.set_title(visible(measure, 40))
        panel.grid(axis="x", linewidth=0.5)
        panel.set_axisbelow(True)
        panel.set_xlim(min(0.0, lowest) - 0.05, 1.05)


def draw_lines(
    panels: Sequence[Axes], curves: Mapping[str, Sequence[tuple[float, float]]], unit: str, *, from_zero: bool = False
) -> None:
    """Draw a curve in each panel, with its name as title; its points are (x, y)."""
    for panel, (name, points), colour in zip(panels, curves.items(), cycle(COLOURS), strict=False):
        panel.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, markersize=3)
        panel.set_title(visible(name, 40))
        panel.set_xlabel(unit)
        panel.grid(axis="y", linewidth=0.5)
        if from_zero:
            panel.set_ylim(0, 1.1 * max([y for _, y in points] + [1e-9]))


def draw_intervals(panels: Sequence[Axes], rows: Sequence[tuple[str, ScoreFigure]], unit: str) -> None:
    """Draw values with their intervals, one a row."""
    (panel,) = panels
    for row, (_, score) in enumerate(rows):
        if score.value is None:
            continue
        if score.low is not None and score.high is not None:
            panel.plot([score.low, score.high], [row, row], color=MAIN, linewidth=3, solid_capstyle="butt")
        panel.plot(score.value, row, "o", color=INK, markersize=5)
    _name_rows(panel, [name for name, _ in rows])
    panel.set_xlabel(unit)
    panel.grid(axis="x", linewidth=0.5)
