"""The charts of a report as SVG data URIs: numbers and ASCII names only, other letters need the reader's fonts."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import isfinite
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kauli.models.adapters.certificate import Certificate
from kauli.models.media.decode import RATE
from kauli.models.metrics import METRICS, metric_of
from kauli.training.evaluation.acoustics import FRAMES_PER_SECOND, mel_spectra
from kauli.training.evaluation.intervals import Interval

_DYNAMIC = 12.0  # natural logarithms of power that a spectrogram shows: 52 dB
INK, MUTED, LINE, ADAPTER, BASE = "#1d2433", "#667085", "#e4e7ec", "#0b6e5b", "#98a2b3"


@dataclass(frozen=True)
class Drawing:
    """An image for the page: its data URI, and what it shows in words."""

    uri: str
    words: str


def dumbbells(adapter: Mapping[str, Interval], base: Mapping[str, Interval], unit: str) -> Drawing:
    """One line for each name: adapter and base with their intervals. Lower is to the left."""
    names = list(adapter)
    figure = Figure(figsize=(7.2, 0.9 + 0.48 * len(names)), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    for place, name in enumerate(names):
        one = adapter[name]
        axes.plot([base[name].value, one.value], [place, place], color=LINE, linewidth=3, zorder=1)
        _point(axes, base[name], place, BASE, "base")
        _point(axes, one, place, ADAPTER, "adapter")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.set_xlabel(f"{unit}, with 95 % intervals")
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, ncols=2, frameon=False, handletextpad=0.2)
    words = "; ".join(f"{name} {one.value:.2f} (base {base[name].value:.2f})" for name, one in adapter.items())
    return draw(figure, f"{unit} by source: {words}.")


def learning_curve(curve: Sequence[Sequence[float | None]], metric: str) -> Drawing | None:
    """Training loss and the validation `metric` over steps; None where nothing was recorded."""
    panels = [
        ("training loss (nats)", _series(curve, 1), MUTED),
        (f"validation ({metric_of(metric).unit})", _series(curve, 2), ADAPTER),
    ]
    drawn = [panel for panel in panels if panel[1]]
    if not drawn:
        return None
    figure = Figure(figsize=(3.7 * len(drawn), 2.7), layout="constrained")
    for axes, (title, points, colour) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        bare(axes)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("step")
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        marker = "o" if len(points) < 40 else ""
        axes.plot([step for step, _ in points], [y for _, y in points], color=colour, marker=marker, markersize=3.5)
        last = points[-1]
        axes.annotate(f"{last[1]:.2f}", last, xytext=(7, 0), textcoords="offset points", va="center", color=colour)
    words = "; ".join(f"{title}: from {points[0][1]:.2f} to {points[-1][1]:.2f}" for title, points, _ in drawn)
    return draw(figure, f"Learning curve. {words}.")


def spectrograms(sounds: Mapping[str, Any]) -> Drawing:
    """Mel spectrograms of samples (n,) at 16 kHz one below another, on one time axis, each under its system's name."""
    figure = Figure(figsize=(7.2, 1.1 * len(sounds)), layout="constrained")
    panels = figure.subplots(len(sounds), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (name, samples) in zip(panels, sounds.items(), strict=True):
        logs = mel_spectra(samples)
        axes.imshow(
            logs.T, origin="lower", aspect="auto", cmap="magma", extent=(0, len(logs) / FRAMES_PER_SECOND, 0, 1),
            vmin=logs.max() - _DYNAMIC, vmax=logs.max(),
        )  # fmt: skip
        axes.set_yticks([])
        axes.set_title(name, loc="left", fontsize=9, color=INK)
    panels[-1].set_xlabel("seconds")
    panels[-1].set_xlim(0, max(len(samples) for samples in sounds.values()) / RATE)
    return draw(figure, f"Spectrograms of {', '.join(sounds)}.")


def calibration(certificates: Mapping[str, Certificate]) -> Drawing | None:
    """Expected against true score of ten parts of the validation rows, a panel a language; None without certificates.

    The rows of a part were not seen by the fit that tells their expected score.
    """
    if not certificates:
        return None
    figure = Figure(figsize=(3.4 * len(certificates), 3.2), layout="constrained")
    words = []
    panels = figure.subplots(1, len(certificates), squeeze=False)[0]
    for axes, (tag, one) in zip(panels, certificates.items(), strict=True):
        bare(axes)
        label = METRICS[one.metric].label.split(",")[0]
        ends = [min(map(min, one.curve)), max(map(max, one.curve))]
        axes.plot(ends, ends, color=LINE, linewidth=1.5)
        axes.plot(*zip(*one.curve, strict=True), "o", color=ADAPTER, markersize=4.5)
        for limit, name in ((one.green, "green"), (one.yellow, "yellow")):
            if ends[0] <= limit <= ends[1]:
                axes.axvline(limit, color=MUTED, linewidth=0.8, linestyle=":")
                axes.annotate(
                    name, (limit, ends[0]), xytext=(3, 0), textcoords="offset points", color=MUTED, fontsize=8
                )
        axes.set_title(tag, loc="left", fontsize=10, color=INK)
        axes.set_xlabel(f"expected {label}")
        axes.set_ylabel("true", color=MUTED)
        words.append(f"{tag}: " + ", ".join(f"{expected:.2f} {true:.2f}" for expected, true in one.curve))
    return draw(figure, f"Expected and true score. {'; '.join(words)}.")


def _series(curve: Sequence[Sequence[float | None]], column: int) -> list[tuple[float, float]]:
    found = []
    for row in curve:
        step, value = row[0], row[column] if len(row) > column else None
        if step is not None and value is not None and isfinite(value):
            found.append((step, value))
    return found


def _point(axes: Axes, one: Interval, place: int, colour: str, label: str) -> None:
    if one.known:
        axes.plot([one.low, one.high], [place, place], color=colour, linewidth=1.6, zorder=2)
    axes.plot([one.value], [place], "o", color=colour, markersize=7, zorder=3, label=label if place == 0 else None)


def bare(axes: Axes) -> None:
    """Take away what is no data: frame and ticks."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(length=0, labelcolor=INK)
    axes.xaxis.label.set_color(MUTED)
    axes.set_axisbelow(True)


def draw(figure: Figure, words: str) -> Drawing:
    """A figure as a drawing; `words` say what it shows."""
    held = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kauli"}):  # the same numbers give the same file
        figure.savefig(held, format="svg", transparent=True, metadata={"Date": None})
    return Drawing("data:image/svg+xml;base64," + base64.b64encode(held.getvalue()).decode(), words)
