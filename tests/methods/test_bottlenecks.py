"""How the factors of auto-encoders begin."""

import pytest
import torch
from helpers import real_model, values_config

from cola_train.model.padding import paddings, remove_padding


def config_of(name, **method):
    return values_config(method={"name": name, **method})


@pytest.mark.parametrize("name", ["cola", "low_rank"])
def test_factors_begin_as_asked(name):
    """Twice as large, whatever is stored beyond a rank of 5."""
    plain, begun = (real_model(config_of(name, rank=5, **of)) for of in ({}, {"init_scale": 2.0}))
    remove_padding(plain)
    pads = paddings(begun)
    factors = [name for name in pads if name[-2:] in ("_A", "_B")]
    assert len(factors) == 2 * 2 * 7
    for factor in factors:
        expected = pads[factor].pad(2 * plain.get_parameter(factor))
        torch.testing.assert_close(begun.get_parameter(factor), expected, rtol=0, atol=1e-6)


def test_a_beginning_is_no_part_of_what_a_checkpoint_must_agree_in():
    of = [config_of("cola"), config_of("cola", init_scale=0.5)]
    assert of[0].method.identity(of[0].model) == of[1].method.identity(of[1].model)
