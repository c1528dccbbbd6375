"""Services that show a run's figures: their names, TensorBoard's files."""

import math

from cola_train.run.sinks.figures import figures_of


def test_figures_have_grouped_names_and_those_by_layer_a_spread():
    line = {
        "step": 5, "tokens": 10, "loss": 2.0, "val_loss/wiki": 3.0, "mfu": None,
        "health": {
            "z_rank": {"q": [12, 14, 40], "o": [None, None, None]},
            "residual_rms": [0.5, math.inf, None, 1.5],
        },
    }  # fmt: skip
    assert figures_of(line) == {
        "train/loss": 2.0, "validation/loss/wiki": 3.0, "perf/mfu": None,
        "health/z_rank/q/min": 12, "health/z_rank/q/median": 14, "health/z_rank/q/max": 40,
        "health/residual_rms/min": 0.5, "health/residual_rms/median": 1.0,
        "health/residual_rms/max": 1.5,
    }  # fmt: skip
