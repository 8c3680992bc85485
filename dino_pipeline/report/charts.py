"""The report's pictures: each drawn once, for the page (colours of its theme) and as a PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dino_pipeline.report.blocks import Histogram, Picture, Table, visible

INK, MUTED, LINES = "#010203", "#5b5c5d", "#c7c8c9"
"""Stand for the page's own colours; `_themed` puts those in their place."""
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", LINES: "var(--line)"}
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#882255")
"""Told apart by colour-blind people, on light and dark ground (from Paul Tol's bright and muted schemes)."""
MAIN, DROPPED = COLOURS[0], COLOURS[1]
WIDTH = 6.4
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


def picture(
    name: str,
    title: str,
    numbers: Table,
    draw: Callable[[Sequence[Axes]], None],
    *,
    height: float,
    panels: int = 1,
) -> Picture:
    """Draw a picture.

    Args:
        name: of its file.
        title: says what it shows.
        numbers: the same as a table.
        draw: fills the panels.
        height: in inches; it is 6.4 wide.
        panels: how many stand side by side.
    """
    with rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # letters that the PNG's font lacks
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.subplots(1, panels, squeeze=False)[0])
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        figure.set_layout_engine("none")  # laid out once is enough
        figure.savefig(png, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return Picture(name, title, _themed(svg.getvalue(), title, name), png.getvalue(), numbers)


def _themed(svg: str, title: str, name: str) -> str:
    """Return the drawing as an element of the page: no prologue, the page's colours, a title to be read out."""
    drawing = svg[svg.index("<svg") :]
    for colour, of_theme in THEME.items():
        drawing = drawing.replace(colour, of_theme)
    drawing = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\1{name}-", drawing)  # one page, one name each
    drawing = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawing, count=2)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(title, quote=True)}"', 1)


def _named(panel: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel of horizontal bars, the first on top."""
    panel.set_yticks(range(len(names)), [visible(name, 40) for name in names])
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)


LEGEND = 66
"""Characters of a legend's line."""
LONGEST_LABEL = 24


def legend_height(labels: Iterable[str]) -> float:
    """Return how many inches the legend of some labels is high."""
    names = list(labels)
    return 0.2 * -(-len(names) // _columns(names))


def _columns(labels: Sequence[str]) -> int:
    return max(1, LEGEND // (8 + max(len(visible(label, LONGEST_LABEL)) for label in labels)))


def _legend(panel: Axes, drawn: Sequence[Any], labels: Sequence[str]) -> None:
    """Say above a panel which colour is what."""
    names = [f" {visible(label, LONGEST_LABEL)}" for label in labels]  # one that begins with _ would not be shown
    panel.legend(drawn, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=_columns(labels), fontsize=9)


def funnel(panels: Sequence[Axes], steps: Sequence[tuple[str, int, int]]) -> None:
    """Draw what each step leaves and takes: (name, left, gone)."""
    (panel,) = panels
    most = max(left + gone for _, left, gone in steps)
    for at, (_, left, gone) in enumerate(steps):
        panel.barh(at, left, color=MAIN, height=0.7)
        panel.barh(at, gone, left=left, color=DROPPED, height=0.7)
        said = f"{left:,}" + (f"  (−{gone:,})" if gone else "")
        panel.text(left + gone + most / 100, at, said, va="center", fontsize=8)
    _named(panel, [name for name, *_ in steps])
    panel.set_xlim(0, most * 1.3)
    panel.set_xlabel("rows left (blue), dropped in this step (red)")


def bars(panels: Sequence[Axes], series: Mapping[str, Mapping[str, int]], labels: Sequence[str], unit: str) -> None:
    """Draw counts by label, each series a bar beside the others."""
    (panel,) = panels
    height = 0.8 / len(series)
    for number, (counts, colour) in enumerate(zip(series.values(), cycle(COLOURS), strict=False)):
        places = [at - 0.4 + height * (number + 0.5) for at in range(len(labels))]
        found = panel.barh(places, [counts.get(label, 0) for label in labels], height * 0.9, color=colour)
        panel.bar_label(found, fmt="{:,.0f}", padding=3, fontsize=8)
    _named(panel, labels)
    panel.set_xlabel(unit)
    panel.margins(x=0.15)
    if len(series) > 1:
        _legend(panel, panel.containers, list(series))


def histograms(panels: Sequence[Axes], found: Histogram, unit: str) -> None:
    """Draw how values of each label are spread, as shares of the label's."""
    (panel,) = panels
    drawn = []
    styles = cycle(("-", "--", "-."))
    for of_label, colour, style in zip(found.counts.values(), cycle(COLOURS), styles, strict=False):
        shares = [100 * count / max(sum(of_label), 1) for count in of_label]
        drawn.append(panel.stairs(shares, found.edges, color=colour, linewidth=1.8, linestyle=style))
    panel.set_xlabel(unit)
    panel.set_ylabel("% of the label's")
    panel.grid(axis="y", linewidth=0.5)
    _legend(panel, drawn, list(found.counts))


def boxes(panels: Sequence[Axes], found: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Draw quantiles by measure and label: the 5th, 25th, 50th, 75th and 95th percentile of each."""
    for at, (panel, (measure, by_label)) in enumerate(zip(panels, found.items(), strict=True)):
        keys = ("whislo", "q1", "med", "q3", "whishi")
        stats = [{**dict(zip(keys, values, strict=True)), "fliers": []} for values in by_label.values()]
        panel.bxp(stats, positions=range(len(stats)), orientation="horizontal", widths=0.6, patch_artist=True,
                          boxprops={"facecolor": MAIN, "edgecolor": MAIN}, medianprops={"color": INK, "linewidth": 2},
                          whiskerprops={"color": MAIN, "linewidth": 2}, capprops={"color": MAIN})  # fmt: skip
        _named(panel, list(by_label) if at == 0 else [""] * len(by_label))
        panel.set_title(visible(measure, 40))
        panel.grid(axis="x", linewidth=0.5)
        panel.set_axisbelow(True)
        panel.set_xlim(min(0.0, *(values[0] for each in found.values() for values in each.values())) - 0.05, 1.05)


def lines(
    panels: Sequence[Axes], found: Mapping[str, Sequence[tuple[float, float]]], unit: str, *, from_zero: bool = False
) -> None:
    """Draw a line a panel: its name over it, points (x, y)."""
    for panel, (name, points), colour in zip(panels, found.items(), cycle(COLOURS), strict=False):
        panel.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, markersize=3)
        panel.set_title(name)
        panel.set_xlabel(unit)
        panel.grid(axis="y", linewidth=0.5)
        if from_zero:
            panel.set_ylim(0, 1.1 * max([y for _, y in points] + [1e-9]))


def intervals(panels: Sequence[Axes], rows: Sequence[tuple[str, Mapping[str, Any]]], unit: str) -> None:
    """Draw values with their intervals, one a line."""
    (panel,) = panels
    for at, (_, found) in enumerate(rows):
        if found["value"] is None:
            continue
        if found["low"] is not None:
            panel.plot([found["low"], found["high"]], [at, at], color=MAIN, linewidth=3, solid_capstyle="butt")
        panel.plot(found["value"], at, "o", color=INK, markersize=5)
    _named(panel, [name for name, _ in rows])
    panel.set_xlabel(unit)
    panel.grid(axis="x", linewidth=0.5)
