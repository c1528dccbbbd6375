"""The learning rate over a run, against its formulas."""

import math

import pytest
from helpers import make_config

from cola_train.errors import UserError
from cola_train.optim import AdamWOptions
from cola_train.schedule import learning_rate

LR, FLOOR, STEPS, WARMUP, DECAY = 3e-3, 0.1, 100, 10, 30


def rates(schedule: str) -> list[float]:
    """Of the steps, the first one at index 1."""
    decay = DECAY if schedule == "wsd" else None
    options = AdamWOptions(
        name="adamw", lr=LR, schedule=schedule, warmup_steps=WARMUP, decay_steps=decay
    )
    return [0.0, *(learning_rate(options, step, STEPS) for step in range(1, STEPS + 1))]


# what is left of the way from the peak to the floor
LEFT = {
    "cosine": lambda step: (1 + math.cos(math.pi * (step - 10) / 90)) / 2,
    "linear": lambda step: (100 - step) / 90,
    "wsd": lambda step: 1 - ((step - 70) / 30) ** 0.5 if step > 70 else 1,
    "constant": lambda step: 1,
}


@pytest.mark.parametrize("schedule", LEFT)
def test_each_is_its_formula(schedule):
    got = rates(schedule)
    assert got[1:11] == pytest.approx([LR * step / 10 for step in range(1, 11)])
    expected = [LR * (FLOOR + (1 - FLOOR) * LEFT[schedule](step)) for step in range(11, 101)]
    assert got[11:] == pytest.approx(expected, rel=1e-12)
    assert max(got) == LR and got[10] == LR
    assert got[100] == pytest.approx(LR if schedule == "constant" else LR * FLOOR)


def test_the_cosine_is_to_the_bit_what_it_was():
    """Before there were others: a run goes on with the rates it began with."""
    for step, rate in enumerate(rates("cosine")[11:], start=11):
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - WARMUP) / (STEPS - WARMUP))))
        assert rate == LR * (FLOOR + (1 - FLOOR) * cosine)


def test_short_runs_have_an_end_and_no_division_by_zero():
    for schedule in LEFT:
        options = AdamWOptions(name="adamw", lr=LR, schedule=schedule)
        for steps in (1, 2, 19, 20):
            got = [learning_rate(options, step, steps) for step in range(1, steps + 1)]
            assert got[-1] == pytest.approx(LR if schedule == "constant" else LR * FLOOR)


def test_a_warm_up_that_is_a_share_of_the_run():
    for ratio, warmup in ((0.05, 50), (0.2, 200), (0.07, 70), (0.0, 0)):
        options = AdamWOptions(name="adamw", lr=LR, warmup_ratio=ratio)
        rates = [learning_rate(options, step, 1000) for step in range(1, 1001)]
        assert rates.index(max(rates)) + 1 == max(1, warmup)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["schedule=wsd", "warmup_steps=90"], "decay_steps: 20 of decay after 90 of warm-up"),
        (["schedule=linear", "decay_steps=5"], "decay_steps: 5 has no effect, .*schedule=linear"),
        (["decay_steps=5"], "decay_steps: 5 has no effect, .*schedule=cosine"),
        (["warmup_steps=5", "warmup_ratio=0.2"], "warmup_ratio: 0.2 has no effect with .*_steps=5"),
        (["schedule=constant", "final_lr_ratio=0.2"], "final_lr_ratio: 0.2 has no effect"),
        (["schedule=cosin"], "schedule: must be one of cosine, wsd, linear, constant"),
    ],
)
def test_what_has_no_effect_is_refused(overrides, said):
    with pytest.raises(UserError, match=f"optim.{said}"):
        make_config("train.steps=100", *(f"optim.{each}" for each in overrides))
