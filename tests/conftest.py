"""What the tests share: configs as a user's overrides make them, a tiny corpus, real launches."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cola_train.cli import check_overrides, compose
from cola_train.config import Config, load

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and there is none"))


def make_config(*overrides: str) -> Config:
    """The config that `cola-train OVERRIDES` would run."""
    good, problems = check_overrides(list(overrides))
    return load(compose(good, problems), problems)


@pytest.fixture
def config_of() -> Callable[..., Config]:
    return make_config


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small .txt files: sentences of a few dozen words."""
    folder = tmp_path_factory.mktemp("corpus")
    choose = random.Random(0)
    words = "the a cat dog tree runs sees under over old red and while then it was not".split()
    for i in range(60):
        sentences = (" ".join(choose.choices(words, k=choose.randint(3, 12))) for _ in range(20))
        (folder / f"{i:03d}.txt").write_text(". ".join(sentences))
    return folder


@pytest.fixture(scope="session")
def tiny(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run that takes milliseconds a step: fp32, 2 layers of width 32."""
    return [
        "model.d_model=32", "model.d_ff=40", "model.n_layers=2", "model.vocab_size=300",
        "data=text", f"data.files=[{corpus}/*.txt]", "data.workers=1",
        f"data.cache_dir={tmp_path_factory.mktemp('cache')}",
        "train.sequence_length=32", "train.batch_size=8", "train.precision=fp32",
        "train.threads=1", "train.deterministic=true", "evaluation.every=0",
        "evaluation.tokens=1024", "evaluation.batch_size=8", "evaluation.sample_tokens=4",
        "checkpoint.every=5", "tracking=local", "tracking.progress=false",
    ]  # fmt: skip


def launch(overrides: list[str], processes: int = 0) -> subprocess.Popen[str]:
    """Start `python -m cola_train`, under torchrun for 1 or more processes, in its own group."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes else []), "-m", "cola_train", *overrides],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_to_end(overrides: list[str], processes: int = 0, expect: int = 0) -> str:
    """The output of a run that must end with exit code `expect`."""
    process = launch(overrides, processes)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expect, output
    return output


def losses(run_dir: Path) -> dict[int, float]:
    """Step to training loss, from metrics.jsonl; a step logged twice fails."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert len(steps) == len(set(steps))
    return {line["step"]: line["loss"] for line in lines if "loss" in line}
