"""Plots as SVG text whose colours are CSS variables, so that one drawing suits light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from latentcache.core.dtypes import Array
from latentcache.inspecting.report.latents import ChannelStatistics, IdStatistics
from latentcache.inspecting.report.markup import Markup, h

#: Colours that stand for CSS variables while matplotlib draws; they occur nowhere else.
INK, GRID, ONE, TWO = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
VARIABLES = {INK: "--ink", GRID: "--line", ONE: "--one", TWO: "--two"}
STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "latentcache",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
#: Size in inches. The page shows a plot about 340 pixels wide, so text comes out at about 12 pixels: in
#: every plot, and on a phone.
SIZE = (4.2, 2.7)
HISTOGRAM_BINS = 20
HEATMAP_BINS = 80


class Plot:
    """A figure with one pair of axes; `svg` ends it."""

    def __init__(self, x: str, y: str, size: tuple[float, float] = SIZE) -> None:
        with matplotlib.rc_context(dict(STYLE)):
            self._figure = Figure(figsize=size, layout="constrained")
            self._figure.patch.set_alpha(0)
            self.axes: Axes = self._figure.add_subplot()
        self.axes.patch.set_alpha(0)
        self.axes.set_xlabel(x)
        self.axes.set_ylabel(y)

    def legend(self, **place: Any) -> None:
        """Name what is drawn."""
        self.axes.legend(frameon=False, fontsize=10.5, labelcolor=INK, **place)

    def svg(self, name: str, title: str) -> Markup:
        """Return the drawing with its title. name: unique in the page."""
        text = io.StringIO()
        with matplotlib.rc_context(dict(STYLE)):
            FigureCanvasSVG(self._figure).print_svg(text, metadata={"Date": None})
        drawing = Markup(_adapted(text.getvalue(), name, title))
        return h("figure", drawing, h("figcaption", title))


def _adapted(svg: str, name: str, title: str) -> str:
    """Return an SVG document as an element of a page: own names, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def distribution(name: str, title: str, unit: str, values: Sequence[float]) -> Markup:
    """Draw how finite values are distributed, with a mark below for each one."""
    plot = Plot(unit, "clips")
    plot.axes.hist(values, bins=min(HISTOGRAM_BINS, max(5, len(values))), color=ONE)
    plot.axes.plot(values, np.zeros(len(values)), "|", color=TWO, markersize=9, clip_on=False)
    plot.axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return plot.svg(name, title)


def by_position(psnr_db: Mapping[str, float]) -> Markup:
    """Draw the PSNR of every position in the frame group."""
    plot = Plot("frame of its group", "PSNR in dB")
    plot.axes.plot(list(psnr_db), list(psnr_db.values()), "o-", color=ONE)
    plot.axes.margins(y=0.25)
    return plot.svg("positions", "PSNR by position in the frame group")


def value_limits(statistics: ChannelStatistics) -> tuple[float, float]:
    """Return the values that the plots by channel show, so that they share both axes."""
    low, high = np.percentile(statistics.values, [0.1, 99.9])
    lows = [low, (statistics.mean - statistics.std).min()]
    highs = [high, (statistics.mean + statistics.std).max()]
    if statistics.is_normalised:
        spread = 1 / np.abs(statistics.scale)
        lows.append((statistics.shift - spread).min())
        highs.append((statistics.shift + spread).max())
    low, high = float(min(lows)), float(max(highs))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _share_values(plot: Plot, limits: tuple[float, float]) -> None:
    """Give a plot the values' axis of its neighbour: the same limits, and the same ticks."""
    ticks = MaxNLocator(nbins=6).tick_values(*limits)
    plot.axes.set_yticks([tick for tick in ticks if limits[0] <= tick <= limits[1]])
    plot.axes.set_ylim(*limits)


def channel_means(statistics: ChannelStatistics, limits: tuple[float, float]) -> Markup:
    """Draw mean and standard deviation of every channel, and the normaliser's values for them."""
    plot = Plot("channel", "value")
    channels = np.arange(len(statistics.mean))
    if statistics.is_normalised:
        spread = 1 / np.abs(statistics.scale)
        low, high = statistics.shift - spread, 2 * spread
        plot.axes.bar(channels, high, bottom=low, color=TWO, alpha=0.35, label="normaliser")
    plot.axes.errorbar(
        channels,
        statistics.mean,
        statistics.std,
        fmt="o",
        ms=3,
        lw=1.2,
        color=ONE,
        label="measured",
    )
    plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plot.axes.set_xlim(-0.5, len(channels) - 0.5)
    _share_values(plot, limits)
    plot.legend(loc="upper left", bbox_to_anchor=(0, 1.17), ncols=2, borderaxespad=0)
    return plot.svg("channels", "Mean ± standard deviation by channel")


def channel_histograms(statistics: ChannelStatistics, limits: tuple[float, float]) -> Markup:
    """Draw the histogram of every channel as a column; each is scaled to its own highest bin."""
    counts = [np.histogram(row, HEATMAP_BINS, limits)[0] for row in statistics.values]
    share = np.array([count / max(1, count.max()) for count in counts])
    plot = Plot("channel", "value")
    extent = (-0.5, len(share) - 0.5, *limits)
    plot.axes.imshow(
        share.T,
        origin="lower",
        aspect="auto",
        extent=extent,
        cmap="viridis",
        interpolation="nearest",
    )
    plot.axes.grid(visible=False)
    plot.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _share_values(plot, limits)
    return plot.svg("histograms", "Histogram of every channel (bright: its most frequent values)")


def id_frequencies(statistics: IdStatistics) -> Markup:
    """Draw how often ids occur, the most frequent first, and how often if all were equally frequent."""
    plot = Plot("rank of the id", "share of all ids")
    ranks = np.arange(1, len(statistics.counts) + 1)
    plot.axes.loglog(ranks, statistics.counts / statistics.num_ids, color=ONE, label="measured")
    plot.axes.axhline(1 / statistics.codebook_size, color=TWO, ls="--", label="all alike")
    plot.legend()
    return plot.svg("ids", "How often ids occur")


def times(edges_s: Array, counts: Mapping[str, Array]) -> Markup:
    """Draw how long clips took, by stage. counts: of each bin between the edges."""
    plot = Plot("seconds per clip", "clips")
    for colour, (stage, bins) in zip((ONE, TWO), counts.items(), strict=True):
        plot.axes.stairs(bins, edges_s, color=colour, fill=True, alpha=0.55, label=stage)
    used = np.flatnonzero(np.sum(list(counts.values()), axis=0))
    plot.axes.set_xscale("log")
    if len(used):
        plot.axes.set_xlim(
            edges_s[max(0, used[0] - 2)], edges_s[min(len(edges_s) - 1, used[-1] + 3)]
        )
    plot.axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    plot.legend()
    return plot.svg("times", "Time by stage")
