"""The figure of docs/planning.md: comparable panels, a GPU's memory among them."""

import argparse
import re

import pytest
from helpers import REPOSITORY
from matplotlib.figure import Figure

from benchmarks import planning
from cola_train.gpus import GPUS


def test_sizes_share_an_axis_with_a_line_at_the_gpus_memory(monkeypatch, tmp_path):
    figures = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, dpi: figures.update({path.name: self})
    )
    report = planning.run(argparse.Namespace(batch=32, gpus=1, plots=tmp_path))
    figure = figures["planning_memory.png"]
    assert "1 GPU " in figure.get_suptitle() and "1 GPUs" not in report.text
    in_gib, shares = figure.axes[0::2], figure.axes[1::2]
    for panels in (in_gib, shares):
        assert len({axes.get_xlim() for axes in panels}) == 1
    limit = GPUS[planning.GPU].memory_bytes / 2**30
    assert all(axes.lines[0].get_xdata()[0] == limit for axes in in_gib)
    first = [text.get_text() for text in shares[0].texts]
    assert first[0] == "100" and max(map(int, first)) == 100  # of full rank, on top


def test_the_docs_steps_by_part_are_the_models():
    text = (REPOSITORY / "docs" / "planning.md").read_text().split("| | 1b full |")[1]
    found = re.findall(r"^\| ([a-z][^|]*|\*\*step\*\*) \| (.*) \|$", text, re.MULTILINE)
    rows = {part: cells.split(" | ") for part, cells in found}
    ways = [planning.times_of(size, 32) for size in planning.TIMED]
    columns = [of for way in ways for name, of in way.items() if not name.startswith("cola_m")]
    for number, parts in enumerate(columns):
        for part in rows.keys() & parts.keys():
            expected = pytest.approx(1e3 * parts[part], rel=0.015, abs=0.06)
            assert float(rows[part][number]) == expected, part
        total = float(rows["**step**"][number].strip("*"))
        assert total == pytest.approx(1e3 * sum(parts.values()), rel=0.005)
    assert len(rows.keys() & columns[0].keys()) == 10
