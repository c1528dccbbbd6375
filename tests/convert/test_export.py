"""Exported models, loaded where there is transformers and not us."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import METHOD_NAMES, WORKERS, exit_code_of

from cola_train.convert.export import export
from cola_train.data.tokenizer import Tokenizer
from cola_train.inference.load import load_model
from cola_train.model.llama import Llama

NEW = 64
CASES = {
    **{name: f"method={name}" for name in METHOD_NAMES},
    **{f"cola-{a}": f"method=cola method.activation={a}" for a in ("low_rank", "full_rank")},
    "dlr": "method=low_rank method.dlr=0.5",
}
OWN = ("cola", "low_rank", "cola-low_rank", "cola-full_rank", "dlr")  # transformers has no class
TEXTS = [
    "the cat runs", " ", "", "a\n\n\tb  c", "naïve café ☃ 中文 \u0000 🤖", "<|endoftext|>",
    "the<|endoftext|>cat", "</s>", "a " * 200,
]  # fmt: skip


@pytest.fixture(scope="module")
def exports(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each case in `runs`, and its export in `exported`."""
    folder = tmp_path_factory.mktemp("exports")
    for name, overrides in CASES.items():
        run, out = folder / "runs" / name, folder / "exported" / name
        options = [*tiny, *overrides.split(), "train.steps=3", "optim.lr=0.03", f"run_dir={run}"]
        options += ["train.sequence_length=96", "evaluation.sample_tokens=0"]
        assert exit_code_of(options) == 0
        export(run, out, dtype="fp32", shard_bytes=50_000)
    return folder


@pytest.fixture(scope="module")
def answers(exports: Path) -> dict[str, Any]:
    """What transformers makes of each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(260, (2, 96), generator=generator).tolist()
    prompts = [torch.randint(260, (n,), generator=generator).tolist() for n in (7, 1, 16)]
    asked = {"tokens": tokens, "prompts": prompts}
    questions = [
        {"folder": str(exports / "exported" / name), "remote": name in OWN, "texts": TEXTS, **asked}
        for name in CASES
    ]
    (exports / "questions.json").write_text(json.dumps(questions))
    subprocess.run(
        [sys.executable, "-I", WORKERS / "transformers_alone.py", "questions.json", "answers.json"],
        cwd=exports,
        env={**os.environ, "HF_HOME": str(exports / "hf"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    found = json.loads((exports / "answers.json").read_text())
    return {**asked, **dict(zip(CASES, found["answers"], strict=True))}


def greedy(model: Llama, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_what_the_run_did(name, exports, answers):
    model, found = load_model(exports / "runs" / name), answers[name]
    assert found["class"] == ("ColaForCausalLM" if name in OWN else "LlamaForCausalLM")
    logits = model(torch.tensor(answers["tokens"]))
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, atol=1e-5, rtol=0)
    for prompt, alone in zip(answers["prompts"], found["alone"], strict=True):
        assert alone == greedy(model, prompt)
    assert found["padded"] == found["static"] == found["alone"]
    assert found["backward"] and found["bf16"] == "torch.bfloat16"


def test_its_tokenizer_gives_our_ids(exports, answers):
    tokenizer = Tokenizer.load(str(exports / "runs" / "cola" / "tokenizer.json"))
    found = answers["cola"]
    assert found["ids"] == [tokenizer.encode(text) for text in TEXTS]
    assert found["texts"] == TEXTS
    assert found["eos"] == [tokenizer.eos_id] * 2
