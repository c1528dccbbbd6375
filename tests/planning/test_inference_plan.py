"""`cola-plan inference` against figures counted by hand."""

import json

import pytest
from helpers import make_config

from cola_train.commands.plan import main
from cola_train.gpus import GPUS
from cola_train.planning.constants import StepConstants
from cola_train.planning.inference import Use, plans

KIB = 1024


def use_of(method: str, batch: int, length: int) -> Use:
    config = make_config("model=7b", f"method={method}")
    gpu = GPUS["h100-80gb"]
    return Use(config, batch, length, gpu, 0.9 * gpu.memory_bytes, StepConstants())


@pytest.mark.parametrize(
    ("method", "kib"),
    [("cola", {"kv": 16, "absorbed": 10, "latent": 4}), ("full", {"kv": 16})],
)
def test_a_token_and_block_of_7b_keeps(method: str, kib: dict[str, int]) -> None:
    found = plans(use_of(method, batch=1, length=1))
    assert {each.name: each.cache_bytes / 32 / KIB for each in found} == kib


def test_a_step_of_7b_by_hand() -> None:
    """d 4096, f 11008, r 1024, 32 blocks, 32,000 tokens; 8 sequences of 4,096 positions."""
    d, f, r = 4096, 11008, 1024
    block = 4 * 2 * d * r + 3 * (d + f) * r + 2 * d
    weights = 32 * block + d + 32000 * d  # without the embedding
    found = {each.name: each for each in plans(use_of("cola", batch=8, length=4096))}
    kv = found["kv"]
    assert kv.read_bytes == 2 * (weights + 8 * d) + 8 * 4096 * 32 * 16 * KIB
    assert kv.seconds == kv.read_bytes / (0.896 * 3.35e12) and kv.bound == "memory"
    latent = found["latent"]
    attended = 32 * 8 * 4096 * (2 * r * d + 2 * d + 2 * 32 * r)
    assert latent.flops == 2 * 8 * weights + attended
    assert latent.workspace_bytes == 8 * 4096 * d * 2 and latent.bound == "compute"
    assert list(found) == ["absorbed", "kv", "latent"]


def test_what_fits_comes_first_and_the_command_says_so(capsys, monkeypatch) -> None:
    largest = plans(use_of("cola", batch=1, length=4096))
    assert plans(use_of("cola", batch=100, length=4096))[0].name == "latent"
    most = max(each.largest_batch for each in largest)
    assert not plans(use_of("cola", batch=most + 1, length=4096))[0].fits
    words = ["cola-plan", "inference", "model=7b", "batch=100", "output=json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out)["take"] == "latent"
