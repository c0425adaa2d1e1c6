"""The paper's figures, drawn with matplotlib ([eval])."""

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..errors import writing
from .tracks import evaluation_package

ACROSS = 4      # metrics side by side: the paper's four


def pyplot():
    """matplotlib's, for files alone."""
    evaluation_package("matplotlib").use("Agg")
    return evaluation_package("matplotlib.pyplot")


def save(figure, path: Path) -> None:
    """In 256 colours: a third of the bytes."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, metadata={"Software": None})
    pyplot().close(figure)
    with Image.open(drawn) as image, writing(path) as temporary:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(temporary, optimize=True)


def draw_heat_map(values: Sequence[Sequence[float]], rows: Sequence[str], title: str,
                  path: Path) -> None:
    """The probe: a column a layer."""
    figure, axes = pyplot().subplots(figsize=(8, 2.4), layout="constrained")
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(values[0])))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("layer i")
    axes.set_title(title)
    figure.colorbar(image)
    save(figure, path)


def draw_grid(clips: Path, rows: Sequence[str], title: str, path: Path) -> None:
    """Figures 1 and 2: a contact sheet of the probe with its conditions named."""
    with Image.open(clips) as sheet:
        width, height = sheet.size
        figure, axes = pyplot().subplots(figsize=(4, 0.5 + 3 * height / width),
                                         layout="constrained")
        axes.imshow(sheet)
    axes.set_xticks([])
    axes.set_yticks([(k + 0.5) * height / len(rows) for k in range(len(rows))], rows)
    axes.set_title(title, fontsize="small", wrap=True)
    save(figure, path)


def draw_dots(columns: dict[str, dict[str, tuple[float, float]]], title: str, path: Path) -> None:
    """A table: for each metric, a dot with its interval a row; mean and half by metric and row."""
    lines, across = math.ceil(len(columns) / ACROSS), min(len(columns), ACROSS)
    names = [textwrap.fill(row, 40, break_on_hyphens=False) for row in next(iter(columns.values()))]
    height = 0.15 + 0.15 * (1 + max(name.count("\n") for name in names))       # of a row, in inches
    figure, every = pyplot().subplots(
        lines, across, sharey=True, squeeze=False, layout="constrained",
        figsize=(2 + 2.2 * across, lines * (0.8 + height * len(names))))
    for axes in every.flat[len(columns):]:
        axes.remove()
    for axes, (metric, rows) in zip(every.flat, columns.items()):
        places = range(len(rows), 0, -1)        # the first row on top
        axes.errorbar([mean for mean, _ in rows.values()], places, fmt="o", capsize=3,
                      xerr=[0 if math.isnan(half) else half for _, half in rows.values()])
        axes.set_yticks(places, names)
        axes.set_title(textwrap.fill(metric, 18), fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    save(figure, path)
