"""`cola-generate`, as scripts and people use it."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from helpers import child_environment, exit_code_of

from cola_train.commands import generate
from cola_train.commands.cli import run_own
from cola_train.inference.caches import CACHES
from cola_train.inference.generate import Limits
from cola_train.inference.generate import generate as answers_of
from cola_train.inference.load import load
from cola_train.inference.sampling import Sampling


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "run"
    assert exit_code_of([*tiny, "train.steps=2", f"run_dir={folder}"]) == 0
    return folder


def code_of(monkeypatch, *words) -> int:
    """`cola-generate WORDS` in this process, which costs no start."""
    monkeypatch.setattr(sys, "argv", ["cola-generate", "threads=1", "dtype=fp32", *words])
    with pytest.raises(SystemExit) as ended:
        run_own(generate.run, generate.GenerateOptions, "cola-generate")
    return ended.value.code


def test_the_sample_of_a_run_is_what_its_checkpoint_gives(tiny, tmp_path, monkeypatch, capsys):
    """Trained on without a cache; sampled with one, by both."""
    prompt = "evaluation.sample_prompt='the cat, '"
    options = ["train.steps=2", f"run_dir={tmp_path}", "evaluation.sample_tokens=40", prompt]
    assert exit_code_of([*tiny, *options]) == 0
    said = capsys.readouterr()
    sample = said.out.split("--- sample ---\n")[1].split("\n--------------")[0]
    (answer,) = answers_of(load(tmp_path), ["the cat, "], Limits(40, past_end=True), Sampling())
    assert sample == generate.printable("the cat, " + answer.text)
    assert answer.ended == "length" and "the sample has" in said.err


def test_prompts_of_every_kind(run, monkeypatch, capsys, tmp_path):
    text = 'the cat, "a=b" and\nthen'
    assert code_of(monkeypatch, f"run_dir={run}", f"prompt={text}", "new_tokens=4") == 0
    said = capsys.readouterr()
    assert said.out.startswith(text) and "+ 4 tokens, the first after" in said.err
    (config := tmp_path / "words.yaml").write_text(json.dumps({"prompt": text}))
    assert code_of(monkeypatch, str(config), f"run_dir={run}", "new_tokens=4") == 0
    assert capsys.readouterr().out == said.out
    file = tmp_path / "prompts.txt"
    file.write_text("the cat\n\na dog sees the old tree\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(file.read_text()))
    given = [[f"prompts_file={file}"], ["prompts=[the cat,a dog sees the old tree]"], []]
    outputs = []
    for words in given:
        common = ["new_tokens=5", "output=json", "seed=7", "batch_size=1"]
        assert code_of(monkeypatch, f"run_dir={run}", *common, *words) == 0
        outputs.append(capsys.readouterr().out)
    first, second = map(json.loads, outputs[0].splitlines())
    assert outputs == outputs[:1] * 3 and second["prompt"] == "a dog sees the old tree"
    assert first["new_tokens"] == 5 and first["ended"] in ("new_tokens", "end_of_text")
    assert code_of(monkeypatch, f"run_dir={run}", "seed=7", "new_tokens=5", given[1][0]) == 0
    assert capsys.readouterr().out == (
        f"--- 1 ---\nthe cat{first['text']}\n--- 2 ---\na dog sees the old tree{second['text']}\n"
    )


def test_each_cache_gives_the_same_text(run, monkeypatch, capsys):
    outputs = []
    for cache in CACHES:
        words = ["prompts=[the cat,a dog sees the old tree]", "temperature=0", "output=json"]
        assert code_of(monkeypatch, f"run_dir={run}", f"cache={cache}", *words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs == outputs[:1] * 3


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["prompt=a", "prompts=[b]"], "prompt and prompts: give prompts in one way"),
        (["prompts_file=/no/such"], "prompts_file: /no/such cannot be read"),
        (["prompt=" + "the old tree " * 30], "and prompt and answer together have at most the"),
        (["prompt=a", "stop=['']"], "stop: an empty text"),
        (["prompt=a", "cache=latents"], "cache: must be one of kv, absorbed, latent, got"),
        (["prompt=a", "device=cpu", "cuda_graph=true"], "cuda_graph: the model is not on a GPU"),
        (["prompt=a", "device=cpu", "compile=true"], "compile: the model is not on a GPU"),
        (["prompt=a", "dtype=fp32", "native=true"], "native: it is for bf16 on a CPU"),
        (["prompt=a", "cache=latent", "native=true"], "native: it is for cache=kv alone"),
        (["prompt=a", "temperature=-1"], "temperature: must be at least 0"),
        (["prompt=a", "run_dir=/no/such"], "/no/such: no such folder"),
        ([], "prompt: there is none"),
    ],
)
def test_bad_input_is_named(run, monkeypatch, capsys, words, problem):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert code_of(monkeypatch, f"run_dir={run}", *words) == 2
    said = capsys.readouterr()
    assert problem in said.err and said.out == ""


def test_on_a_terminal_lines_are_answered_until_ctrl_d(run):
    """And an answer has no commands to it."""
    ours, its = pty.openpty()
    words = [f"run_dir={run}", "device=cpu", "threads=1", "top_k=0", "temperature=5.0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cola_train.commands.generate", *words],
        stdin=its, stdout=its, stderr=its, start_new_session=True,
        env=child_environment(TERM="dumb"),
    )  # fmt: skip
    os.close(its)
    said = ""

    def until(*texts: str) -> None:
        """One after the other, and the prompt after them: what is typed earlier may be lost."""
        nonlocal said
        deadline = time.monotonic() + 120
        while not re.search(".*".join([*map(re.escape, texts), "\n> "]), f"\n{said}", re.DOTALL):
            assert time.monotonic() < deadline, said
            if select.select([ours], [], [], 1.0)[0]:
                said += os.read(ours, 1000).decode(errors="replace")

    try:
        until()
        os.write(ours, b"the cat\n")
        until("the cat", "tokens, the first after")
        os.write(ours, ("the old tree " * 30 + "\n").encode())
        until("together have at most")
        os.write(ours, b"\x04")
        assert process.wait(120) == 0
    finally:
        process.kill()
    body = said.split("the cat")[1].split("tokens, the first")[0]
    assert not set(body) & {"\x1b", "\x00", "\x02", "\x7f", "\x9b"} and "\\x" in body
    os.close(ours)


def test_ctrl_c_stops_an_answer_and_no_more(run, monkeypatch, capsys):
    lines, written = iter(["the cat", "", "a dog"]), []

    def line(ready: str) -> str:
        if (typed := next(lines, None)) is None:
            raise EOFError
        return typed

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", line)
    monkeypatch.setattr(generate, "write", write)
    generate.converse(load(run), generate.GenerateOptions(new_tokens=6, run_dir=str(run)))
    assert len(written) > 4 and capsys.readouterr().err.count("the first after") == 1
