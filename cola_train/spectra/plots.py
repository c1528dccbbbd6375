"""Plots in the form of the paper's Figure 2 (arXiv 2502.10940): the decay of singular values, and
effective rank beside full width, block by block."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cola_train.files import whole_file
from cola_train.spectra.recorder import PLACES, Measured, Place

WORDS: dict[Place, str] = {
    "input": "inputs", "z": "z = A x", "s": "s = f(z)", "output": "outputs"
}  # fmt: skip
ROWS = 40  # projections that are drawn; spectra.json has all
FLOOR = 1e-6  # of singular values over the largest that are drawn


def decay(measured: Sequence[Measured], title: str, path: Path) -> None:
    """A panel for each projection and place, a line for each block, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    last = max(each.linear.layer for each in measured)

    def draw(axes: Any, place: Place, column: Sequence[Measured]) -> None:
        from matplotlib import colormaps

        for each in column:
            values = [max(value, FLOOR / 10) for value in each.spectra[place].values]
            colour = colormaps["viridis"](0.9 * each.linear.layer / max(1, last))
            axes.plot(range(1, len(values) + 1), values, lw=1, color=colour)
        axes.set(yscale="log", ylim=(FLOOR, 1.5))
        axes.minorticks_off()
        axes.grid(alpha=0.3)

    about = "singular values over the largest, by their number; from dark to bright: block 0"
    _panels(measured, f"{title}\n{about} to {last}", path, draw, sharey=True)


def rank(measured: Sequence[Measured], alpha: float, title: str, path: Path) -> None:
    """The same, with bars of effective rank before bars of full width, and a line at the rank that
    a bottleneck was given.

    Raises:
        OSError: it cannot be written.
    """

    def draw(axes: Any, place: Place, column: Sequence[Measured]) -> None:
        blocks = [each.linear.layer for each in column]
        found = [each.spectra[place] for each in column]
        axes.bar(blocks, [of.width for of in found], width=0.85, color="0.88")
        axes.bar(blocks, [of.effective_rank for of in found], width=0.6, color="C0")
        given = column[0].linear.rank
        if given is not None and given < found[0].width:
            axes.axhline(given, color="C3", lw=1.2, ls="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(y=0.05)

    about = f"effective rank at {alpha:g} (blue), full width (grey), the rank given (red), by block"
    _panels(measured, f"{title}\n{about}", path, draw, sharey=False)


def _panels(
    measured: Sequence[Measured],
    title: str,
    path: Path,
    draw: Callable[[Any, Place, Sequence[Measured]], None],
    sharey: bool,
) -> None:
    """A row for each projection, a column for each place; sharey: panels have one scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(each.linear.projection for each in measured))
    if len(names) > ROWS:
        title += f"\n(the first {ROWS} of {len(names)} projections)"
    names = names[:ROWS]
    places = [place for place in PLACES if any(place in each.spectra for each in measured)]
    width, height = 1 + 2.6 * len(places), 1 + 1.6 * len(names)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    edges = {"left": 0.8 / width, "right": 1 - 0.2 / width, "bottom": 0.3 / height}
    grid = figure.subplots(
        len(names), len(places), squeeze=False, sharey=sharey,
        gridspec_kw={**edges, "top": 1 - 0.8 / height, "wspace": 0.2, "hspace": 0.25},
    )  # fmt: skip
    for name, row in zip(names, grid, strict=True):
        for place, axes in zip(places, row, strict=True):
            of = [m for m in measured if m.linear.projection == name and place in m.spectra]
            if of:
                draw(axes, place, of)
            else:
                axes.set_axis_off()
            axes.tick_params(labelsize=7)
        row[0].set_ylabel(name)
    for place, axes in zip(places, grid[0], strict=True):
        axes.set_title(WORDS[place], fontsize=10)
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
