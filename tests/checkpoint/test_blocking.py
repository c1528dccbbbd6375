"""How long a save keeps training waiting."""

from statistics import median

import pytest

from benchmarks.scaling import in_group


@pytest.mark.slow
@pytest.mark.parametrize("way", ["full", "ZeRO 2", "ZeRO 3"])
def test_an_asynchronous_save_blocks_little(way, tmp_path):
    """500 MB of 60m, from the engine's state on, beside real steps."""
    if way.startswith("ZeRO"):
        pytest.importorskip("deepspeed")
    (found,) = in_group(1, tmp_path / "saves.json", "save", way, "3")
    # the median: on a machine with other work a copy may be held up
    shares = [b / s for b, s in zip(found["blocked"], found["seconds"], strict=True)]
    assert median(shares) < 0.1, found
