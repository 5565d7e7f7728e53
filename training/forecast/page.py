"""The page of a forecast: one HTML file that needs no network."""

from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from kauli.models.files import write_atomically
from kauli.models.metrics import label, metric_of
from kauli.training.evaluation.charts import ADAPTER, BASE, MUTED, Drawing, bare, draw
from kauli.training.forecast.coverage import NUM_SHOWN
from kauli.training.forecast.forecast import TIMES, Forecast


def write_page(found: Forecast, path: Path) -> None:
    """Write it; the file appears whole or not at all."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("kauli.training.forecast") / "page.html").read_text(encoding="utf-8"))
    html = template.render(
        found=found, metric=label(found.proxy.metric), drawing=chart(found), shown=NUM_SHOWN,
        now=float(found.learning.draws[:, -1].mean()), expected=list(zip(TIMES, found.expected, strict=True)),
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html.encode())


def chart(found: Forecast) -> Drawing:
    """Scores of all subsets, the curve, and the forecasts with their intervals, over groups."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    groups = np.array(found.learning.groups, dtype=np.float64)
    for scores in found.learning.draws:
        axes.plot(groups, scores, ".", color=BASE, markersize=4)
    line = np.geomspace(groups[0], found.expected[-1].size, 100)
    axes.plot(line, [found.curve(size) for size in line], color=MUTED, linewidth=1)
    for one in found.expected:
        axes.plot([one.size, one.size], [one.low, one.high], color=ADAPTER, linewidth=2)
        axes.plot([one.size], [one.score], "o", color=ADAPTER, markersize=6)
    axes.set_xscale("log")
    axes.set_xlabel("groups of training rows")
    axes.set_title(metric_of(found.proxy.metric).unit or found.proxy.metric, loc="left", fontsize=10)
    words = "; ".join(f"{one.size:.0f} groups: {one.low:.3f} to {one.high:.3f}" for one in found.expected)
    return draw(figure, f"Score against groups. Forecast: {words}.")
