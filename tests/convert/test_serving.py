"""An exported model behind vLLM's OpenAI-compatible server, which reads its one modeling file."""

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import REPOSITORY, exit_code_of, run_python

import cola_train

PYTHON = Path(os.environ.get("COLA_VLLM", REPOSITORY / "build" / "vllm" / "bin" / "python"))
START_SECONDS = 300
NEW = 24  # tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs vLLM: tests/install_vllm.sh installs it"),
]


@pytest.mark.parametrize("method", ["cola", "full"])
def test_vllm_serves_the_models_greedy_tokens(tiny, tmp_path, method):
    run_dir, folder = tmp_path / "run", tmp_path / "exported"
    overrides = [f"method={method}", "train.steps=20", "optim.lr=1e-2", f"run_dir={run_dir}"]
    overrides += ["model.d_model=64", "model.n_heads=2"]  # vLLM's attention wants heads of 32
    assert exit_code_of([*tiny, *overrides]) == 0
    run_python("-m", "cola_train.commands.export", f"run_dir={run_dir}", f"out={folder}")
    prompts = [[5, 17, 80], [200, 3, 9, 41, 11]]
    model = cola_train.load_model(run_dir)
    with server(folder, tmp_path / "server.log") as ask:
        answers = ask({"prompt": prompts, "max_tokens": NEW})
    assert [answer["token_ids"] for answer in answers] == [greedy(model, p) for p in prompts]


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@contextmanager
def server(folder: Path, log: Path) -> Iterator[Any]:
    """vLLM serving `folder` in fp32; what is given asks it for completions without sampling."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folder,
        "--served-model-name", "it", "--trust-remote-code", "--dtype", "float32",
        "--enforce-eager", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ask(request: dict[str, Any]) -> list[dict[str, Any]]:
        body = {"model": "it", "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        answer = urllib.request.Request(
            f"{url}/v1/completions",
            json.dumps(body | request).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(answer, timeout=120) as reply:
            choices: list[dict[str, Any]] = json.load(reply)["choices"]
        return choices

    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, cwd=log.parent, stdout=output, stderr=output
        )
    try:
        wait(url, process, log)
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=60)
        print(log.read_text()[-5000:])


def wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"the server did not start:\n{log.read_text()[-3000:]}")
