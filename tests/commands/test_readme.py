"""Every command of README.md and of docs/howto.md, from the first to the last in an empty folder.

Sizes and steps are cut down; launch/README.md's are in test_launch.py.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from helpers import REPOSITORY, exit_code_of, run_forked, run_python

SMALL = """
    model.d_model=128 model.d_ff=64 model.n_layers=1 model.n_heads=2 train.sequence_length=32
    train.batch_size=4 train.steps=2 train.compile=false train.threads=1 train.precision=fp32
    evaluation.tokens=256 evaluation.batch_size=4 evaluation.sample_tokens=1 tracking=local
    tracking.progress=false data.max_files=30
""".split()
# of commands whose module is not `cola_train.commands.NAME`
MODULES = {
    **dict.fromkeys(("cola-train", "torchrun"), "cola_train"),
    "cola-import": "cola_train.commands.import_",
}
COMPOSED = ["--cfg", "job"]  # what only the hub or a large machine has is composed and no more
MORE = {
    "cola-train": SMALL, "cola-prepare": COMPOSED, "torchrun": COMPOSED,
    "cola-compare": COMPOSED,  # of eighteen runs, none
}  # fmt: skip
ELSEWHERE = ("make", "launch/", "$EDITOR")  # the set-up; scripts with a test of their own


def commands(page: str) -> list[str]:
    """Of its bash blocks, those that go over several lines whole."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in re.split(r"\n(?![ ])", block.strip())]
    joined: list[str] = []
    for line in lines:
        if joined and "<<'YAML'" in joined[-1] and not joined[-1].endswith("\nYAML"):
            joined[-1] += f"\n{line}"
        else:
            joined.append(line)
    return joined


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/howto.md"])
def test_every_command_runs(page, tmp_path, corpus, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus").symlink_to(corpus)
    if file := re.search(r"```yaml\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL):
        (tmp_path / "my.yaml").write_text(file[1])
    # README.md has every command about once: there also as a process of its own
    start, ran = run_python if page == "README.md" else run_forked, []
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if line.startswith(ELSEWHERE):
            continue
        if line.startswith(("mkdir", "cat")):
            subprocess.run(["bash", "-c", line], check=True)
        elif words[0] == "cola-train" and "-m" not in words:
            assert exit_code_of([*words[1:], *SMALL]) == 0, line + capsys.readouterr().err
        else:
            inner = words[words.index("cola_train") :] if words[0] == "torchrun" else words
            name = words[0].removeprefix("cola-")
            module = MODULES.get(words[0], f"cola_train.commands.{name}")
            command = ["-m", module, *inner[1:], *MORE.get(words[0], [])]
            start(*command, folder=tmp_path)
        ran.append(words[0])
    assert {"cola-train", "cola-plan"} <= set(ran) and len(ran) > 8
    assert Path("outputs/mine/plots/loss.png").exists() and Path("outputs/sweeps").is_dir()
