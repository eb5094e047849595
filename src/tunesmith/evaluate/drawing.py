"""Loss curves as an SVG drawing. The only file that imports matplotlib."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tunesmith.evaluate.curves import Curves, Point

# Colours that no drawing would use stand for the page's own, so that one drawing fits light and dark pages.
_INK, _GRID, _TRAIN, _VALIDATION, _RATE = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_PAGE_COLOURS = {
    _INK: "currentColor",
    _GRID: "var(--line)",
    _TRAIN: "var(--series-1)",
    _VALIDATION: "var(--series-2)",
    _RATE: "var(--muted)",
}


def draw_curves(curves: Curves) -> str | None:
    """Return the curves as an `<svg>` element that takes its colours from the page's CSS; None without any point.

    The CSS variables are `--line`, `--muted`, `--series-1` (training) and `--series-2` (validation). Points that aren't
    finite are left out. The same curves give the same text.
    """
    train, validation, rate = (
        _finite(points) for points in (curves.train_loss, curves.validation_loss, curves.learning_rate)
    )
    if not train and not validation:
        return None
    figure = Figure(figsize=(9.2, 4.4 if rate else 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    panels = figure.subplots(2 if rate else 1, 1, sharex=True, squeeze=False, height_ratios=[3.2, 1] if rate else [1])
    loss = panels[0][0]
    _draw_losses(loss, train, validation, curves.best_step)
    if rate:
        panels[1][0].plot(*zip(*rate, strict=True), color=_RATE, linewidth=1.6)
        panels[1][0].set_ylabel("learning rate")
        panels[1][0].yaxis.set_major_formatter("{x:g}")
        panels[1][0].set_ylim(bottom=0)
    for (axes,) in panels:
        _dress(axes)
    panels[-1][0].set_xlabel("optimiser step")
    panels[-1][0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return _as_element(figure)


def _draw_losses(axes: Axes, train: list[Point], validation: list[Point], best_step: int | None) -> None:
    """Draw both losses, the training loss also smoothed when there are many steps."""
    many = len(train) > 40
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(
            steps,
            losses,
            color=_TRAIN,
            linewidth=1.0 if many else 1.8,
            alpha=0.3 if many else 1.0,
            label=None if many else "training loss",
        )
        if many:
            axes.plot(
                steps, _smooth(losses, len(train) // 25), color=_TRAIN, linewidth=1.8, label="training loss, smoothed"
            )
    if validation:
        axes.plot(
            *zip(*validation, strict=True),
            color=_VALIDATION,
            linewidth=1.8,
            marker="o",
            markersize=5,
            label="validation loss",
        )
    kept = dict(validation).get(best_step) if best_step is not None else None
    if kept is not None and best_step is not None:
        axes.plot(
            [best_step],
            [kept],
            linestyle="none",
            marker="o",
            markersize=11,
            fillstyle="none",
            color=_INK,
            label=f"kept: step {best_step:,}",
        )
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=_INK, loc="upper right")


def _dress(axes: Axes) -> None:
    """Give axes the page's colours: no box, quiet grid."""
    axes.set_facecolor("none")
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.tick_params(colors=_INK, length=0)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _as_element(figure: Figure) -> str:
    """Return the figure as an `<svg>` element without prolog, with the page's colours and fonts."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tunesmith"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    element = text[text.index("<svg") :].replace("<svg", '<svg role="img" aria-label="Loss by optimiser step"', 1)
    for placeholder, colour in _PAGE_COLOURS.items():
        element = element.replace(placeholder, colour)
    return element


def _smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the centred moving average; shorter windows at both ends."""
    reach = max(1, window // 2)
    parts = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [math.fsum(part) / len(part) for part in parts]


def _finite(points: Sequence[Point]) -> list[Point]:
    """Leave out what can't be drawn."""
    return [(step, value) for step, value in points if math.isfinite(value)]
