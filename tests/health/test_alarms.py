"""When figures become warnings: thresholds, how often, from when on."""

import math

from cola_train.health.alarms import NAMED, SETTLED, Alarms

NAMES = {("q", 0): "layers.0.attention.qkv.q", ("q", 1): "layers.1.attention.qkv.q"}


def said(alarms, step, figure, *values, projection="q"):
    found = {(figure, projection, block): value for block, value in enumerate(values)}
    return list(alarms.new(step, found, NAMES))


def test_each_place_is_named_once_the_worst_first():
    alarms = Alarms(warm_up=0)
    assert said(alarms, 1, "norm_ba", 99.0, math.nan) == []
    (both,) = said(alarms, 2, "norm_ba", 100.0, 5e4)
    assert f"(norm_ba): {NAMES['q', 1]} (5e+04), {NAMES['q', 0]} (100)." in both
    assert said(alarms, 3, "norm_ba", 1e3, 1e6) == []
    (of_blocks,) = said(alarms, 4, "max_logit", *[2000.0] * (NAMED + 3), projection="")
    assert "layers.0 (2e+03)" in of_blocks and "and 3 others" in of_blocks


def test_updates_must_be_too_large_for_three_lines_once_it_has_settled():
    alarms = Alarms(warm_up=10)
    steps = [*range(SETTLED, SETTLED + 20)]
    warned = [step for step in steps if said(alarms, step, "update_b", 0.2, 0.01)]
    assert warned == [SETTLED + 13]  # the first after the warm-up and SETTLED is + 11
    alarms = Alarms(warm_up=0)
    values = [0.2, 0.2, 0.05, 0.2, 0.2, 0.2]
    assert [len(said(alarms, SETTLED + 1 + i, "update_a", v)) for i, v in enumerate(values)] == [
        0, 0, 0, 0, 0, 1,
    ]  # fmt: skip


def test_a_rank_that_falls_is_a_collapse_and_one_that_is_low_is_none():
    alarms = Alarms(warm_up=0)
    assert [said(alarms, step, "s_rank", 47.0, 1.0) for step in (1, 50)] == [[], []]
    assert said(alarms, SETTLED + 1, "s_rank", 2.0, 1.0) == []  # it began higher, as all do
    assert said(alarms, SETTLED + 2, "s_rank", 20.0, 1.0) == []
    assert said(alarms, SETTLED + 3, "s_rank", 2.0, 1.0) == []
    (warning,) = said(alarms, SETTLED + 4, "s_rank", 2.0, 1.0)
    assert NAMES["q", 0] in warning and NAMES["q", 1] not in warning
