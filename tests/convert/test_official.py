"""Checkpoints of the reference code, both kinds, against its equations in plain torch."""

from pathlib import Path

import pytest
import torch
from model_folders import ours, tokens
from official_case import LAYERS, official_logits, write_official

from cola_train.convert.reading import open_folder


@pytest.mark.parametrize("split", [False, True], ids=["cola", "cola_m"])
@pytest.mark.parametrize("gate_silu", [False, True])
def test_logits_are_those_of_the_reference_equations(
    split: bool, gate_silu: bool, tmp_path: Path
) -> None:
    weights = write_official(tmp_path, split, gate_silu, torch_file=gate_silu)
    folder = open_folder(tmp_path)
    assert len(folder.shapes) == len(weights) == 3 + LAYERS * 16
    double = {name: weight.double() for name, weight in weights.items()}
    expected = official_logits(double, tokens(), split, gate_silu)
    assert expected.std() > 1
    torch.testing.assert_close(ours(folder)(tokens()), expected.float(), atol=1e-4, rtol=1e-4)
