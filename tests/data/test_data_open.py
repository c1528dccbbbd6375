"""`open_data` in a process group: one process prepares, all wait, all fail together."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp
from corpora import some_texts, write_jsonl

import cola_train.data.prepared
from cola_train.data.options import DataOptions, TextOptions
from cola_train.data.prepared import open_data
from cola_train.errors import UserError


def in_a_group(rank: int, folder: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(0, 60))
    cola_train.data.prepared.HEARTBEAT_SECONDS = 0.0
    opened = open_data(TextOptions(**good), 300, progress=False)
    lines = [opened.train.fingerprint]
    cases = {
        "preparing": (bad, 300),
        "vocabulary": (good, 280),
    }
    for name, (config, vocab_size) in cases.items():
        try:
            open_data(TextOptions(**config), vocab_size, progress=False)
        except UserError as error:
            lines.append(f"{name}: {error}")
    Path(folder, f"said-{rank}").write_text("\n".join(lines))
    dist.barrier()
    dist.destroy_process_group()


def test_all_processes_open_the_same_data_or_fail_alike(
    tmp_path: Path, data_config: Callable[..., DataOptions]
) -> None:
    write_jsonl(tmp_path / "good.jsonl", some_texts(50))
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    good = vars(data_config(files=[str(tmp_path / "good.jsonl")]))
    bad = vars(data_config(files=[str(tmp_path / "bad.txt")]))
    mp.start_processes(in_a_group, (str(tmp_path), good, bad), nprocs=2, start_method="spawn")
    first, second = ((tmp_path / f"said-{rank}").read_text() for rank in range(2))
    assert first == second
    assert "bad.txt: cannot be read" in first and "model.vocab_size=280" in first
