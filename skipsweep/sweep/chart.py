"""Line charts for a terminal, of braille characters: 2 x 4 dots each."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from skipsweep.sweep.schedules import Curve, Drawing

WIDTH, HEIGHT = 32, 6
"""Characters of the area inside the axes."""
COLOURS = ("cyan", "magenta")
"""One per line: no chart has more than two."""
DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""Bit of each dot of a braille character, as they lie."""
BLANK = 0x2800
"""The braille character without dots."""
LABEL = 7
"""Characters left of the vertical axis."""


def figure(drawing: Drawing) -> Group:
    """All charts of a drawing, with the values at start, middle and end beside them."""
    curves = drawing.curves
    roles = {name.removeprefix("lr/"): curve for name, curve in curves.items() if name.startswith("lr/")}
    parts: list[Group | Text] = [
        chart("learning rate: factor of the peak, and rate by role", {"factor": curves["lr_factor"]}, roles)
    ]
    if "momentum" in curves:
        parts.append(chart("momentum", {"momentum": curves["momentum"]}))
    windows = {name.removeprefix("window/"): curve for name, curve in curves.items() if name.startswith("window/")}
    parts.append(chart("attention window, tokens", windows) if windows else Text("attention window: no limit"))
    return Group(Text(f"{drawing.steps:,} steps: {', '.join(drawing.arms)}", "bold"), *parts)


def chart(title: str, lines: Mapping[str, Curve], also: Mapping[str, Curve] | None = None) -> Group:
    """`lines` drawn into one pair of axes; beside it their values, and those of `also`."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(_axes(list(lines.values())), _values({**lines, **(also or {})}, coloured=len(lines)))
    return Group(Text(title), grid)


def _axes(curves: Sequence[Curve]) -> Text:
    """The area, the range left of it and the steps below."""
    low, high = limits(curves)
    last = max(curve.steps[-1] for curve in curves)
    layers = [area(curve, low, high, last) for curve in curves]
    labels = [short(high), *[""] * (HEIGHT - 2), short(low)]
    text = Text(no_wrap=True)
    for row, label in enumerate(labels):
        text.append(f"{label:>{LABEL}} │")
        for column in range(WIDTH):
            text.append(*_cell([layer[row, column] for layer in layers]))
        text.append("\n")
    text.append(f"{'':>{LABEL}} └{'─' * WIDTH}\n")
    middle, end = f"{last // 2:,}", f"{last:,} steps"
    return text.append(f"{'':>{LABEL}}  0{middle:^{WIDTH - 1 - len(end)}}{end}")


def _cell(bits: Sequence[int]) -> tuple[str, str]:
    """Character with all dots, and the colour of the first curve that has any."""
    first = next((k for k, own in enumerate(bits) if own), 0)
    together = int(np.bitwise_or.reduce(bits))
    return chr(BLANK + together) if together else " ", COLOURS[first]


def limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Values at the lower and the upper edge: from 0, unless that leaves the lower half empty."""
    low, high = (pick(value for curve in curves for value in curve.values) for pick in (min, max))
    return (low if high / 2 < low < high else 0.0), (high or 1.0)


def area(curve: Curve, low: float, high: float, last: int) -> NDArray[np.int64]:
    """Dots of a curve as braille bits (HEIGHT, WIDTH); columns are steps from 0 to `last`, jumps are joined."""
    columns, rows = 2 * WIDTH, 4 * HEIGHT
    values = curve.at(np.linspace(0, last, columns))
    heights = np.rint((high - values) / (high - low) * (rows - 1)).astype(int)
    bits = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    before = heights[0]
    for column, height in enumerate(heights):
        # Up to where the last column ended, but not over it.
        for row in {height, *range(height, before, 1 if before > height else -1)}:
            bits[row // 4, column // 2] |= DOTS[row % 4, column % 2]
        before = height
    return bits


def _values(curves: Mapping[str, Curve], coloured: int) -> Table:
    """Values at the first, the middle and the last step; the first `coloured` rows name lines of the chart."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("")
    for head in ("start", "middle", "end"):
        made.add_column(head, justify="right")
    for row, (name, curve) in enumerate(curves.items()):
        last = curve.steps[-1]
        values = curve.at(np.array([0.0, last // 2, last]))
        made.add_row(Text(name, COLOURS[row] if row < coloured else ""), *(short(float(value)) for value in values))
    return made


def short(value: float) -> str:
    """Three digits that count; numbers of tokens whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
