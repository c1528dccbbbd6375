"""A config file of one's own: its place between defaults and command line, and its mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import exit_code_of, run_forked

from cola_train.commands.cli import compose
from cola_train.commands.config_file import read_command_line
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.schema import Config
from cola_train.errors import UserError


def composed(*words: str, folder: str | None = None) -> Config:
    line = read_command_line(list(words), folder=folder)
    values = compose(line.overrides, line.problems, of_file=line.of_file)
    return load(values, line.problems, checks=OF_THE_CONFIG)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes my.yaml in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        Path("my.yaml").write_text(text)
        return "my.yaml"

    return write


MINE = """
model: {name: mine, d_model: 96, n_heads: 2}
method: {name: cola, rank: 16}
recompute: light
data: {source: text, files: ["a=b, c/*.txt"]}
train:
  steps: 1_000
  batch_tokens: 4096
optim.lr: 1e-3
evaluation: {sample_prompt: "def f(x, y='${seed}'): # größe"}
tracking: {tags: [a, "1e3"]}
"""


def test_a_file_says_what_a_command_line_would(file):
    config = composed(file(MINE))
    assert (config.model.name, config.model.d_model, config.model.n_layers) == ("mine", 96, 4)
    assert (config.method.name, config.method.rank, config.recompute.name) == ("cola", 16, "light")
    assert config.data.files == ["a=b, c/*.txt"] and config.train.steps == 1000
    assert config.batch_size == 16 and config.optim.lr == 1e-3
    assert config.evaluation.sample_prompt == "def f(x, y='0'): # größe"
    assert config.tracking.tags == ["a", "1e3"]
    assert composed(file("model: 60m\nexperiment: paper_60m")).train.steps == 10_000
    assert composed(file("model: {name: 60m, n_layers: 2}")).model.d_model == 512
    assert composed(file("experiment: paper_60m\ntrain: {steps: 7000}")).train.steps == 7000
    deepspeed = file("engine: {name: deepspeed, overrides: {zero_optimization: {a: 1.5}}}")
    assert composed(deepspeed).engine.overrides == {"zero_optimization": {"a": 1.5}}
    assert composed(file("")) == composed()
    assert composed(file("train:\n  # steps: 7"), "train.steps=3").train.steps == 3


def test_the_command_line_replaces_what_a_file_says(file):
    name = file(MINE)
    assert composed(name, "method.rank=8", "optim.lr=1").method.rank == 8
    assert composed(name, "model=60m").model == composed("model=60m").model
    assert composed("method=full", "recompute=none", name).method == composed("method=full").method
    assert composed(name, "data=stdlib").data.source == "stdlib"
    assert composed(name, "train.batch_size=6").batch_size == 6
    paper = composed(name, "experiment=paper_130m")
    assert (paper.model.name, paper.model.d_model, paper.train.steps) == ("130m", 768, 20_000)
    assert paper.optim.lr == 3e-3 and paper.data.source == "c4"
    with pytest.raises(UserError, match=r"data.files: .* is an option of data=text"):
        composed(name, "data=stdlib", "data.files=[x]")


def test_a_runs_own_file_says_the_run_again(file):
    """In the folder of its new name, where it gets one; what followed the model follows it."""
    config = composed("method.activation=both", "evaluation.sample_prompt='a, b'")
    name = file(yaml.safe_dump(json.loads(json.dumps(config, default=vars))))
    assert composed(name) == config
    again = composed(name, "run_name=again", "model=130m")
    assert (again.run_name, again.run_dir) == ("again", "outputs/again")
    assert again.method.bottleneck(again.model) == 256 and again.data.vocab_size == 32_000


def test_own_groups_are_found_beside_a_file_and_in_a_folder(file, tmp_path):
    name, own = file("model: mine"), "name: my own\nd_model: 64\nd_ff: 128\nn_layers: 2\n"
    own += "n_heads: 2\nvocab_size: 300\nrank_ratio: 0.5\nactivation: both\n"
    Path("model").mkdir()
    Path("model/mine.yaml").write_text(own)
    Path("experiment").mkdir()
    Path("experiment/try.yaml").write_text("# @package _global_\ntrain: {steps: 7}\n")
    assert composed(name, "experiment=try").train.steps == 7
    assert composed(name).model.d_model == composed("model=mine", folder=".").model.d_model == 64
    assert composed("model=mine", f"hydra.searchpath=[file://{tmp_path}]").model.name == "my own"
    with pytest.raises(UserError, match="`mine` does not exist"):
        composed("model=mine")
    Path("experiment/try.yaml").write_text("train: {steps: 7}\n")
    with pytest.raises(UserError, match=r"try.yaml: an experiment begins with `# @package _glob"):
        composed(name)
    Path("experiment/try.yaml").unlink()
    Path("model/60m.yaml").write_text(own)
    with pytest.raises(UserError, match=r"60m.yaml: there is a model=60m already.*another name"):
        composed(name)


def test_mistakes_of_an_own_group_are_named_with_its_file(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "odd.yaml"
    path.write_text("name: odd\nd_modle: 3\nn_layers: 2\n")
    assert exit_code_of(["--config-dir", str(tmp_path), "model=odd"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {path}: option `d_modle` does not exist; did you mean `d_model`?"
    assert second.startswith(f"error: {path}: missing: vocab_size, d_model, d_ff, n_heads, ")


def test_a_runs_file_with_a_folder_of_its_own_asks_for_another(file, capsys):
    run = file("run_name: a\nrun_dir: /scratch/1b\n")
    assert exit_code_of([run, "run_name=b"]) == 2
    said = capsys.readouterr().err
    assert "my.yaml: run_dir=/scratch/1b: the folder of another run_name; give run_dir too" in said
    assert composed(run, "run_name=b", "run_dir=/scratch/b").run_dir == "/scratch/b"


def test_every_command_takes_a_file_and_a_folder_of_groups(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))  # a working directory of its own below
    folder = tmp_path / "own"
    shutil.copytree(Path(__file__).parents[2] / "configs" / "model", folder / "model")
    small = (folder / "model" / "small.yaml").read_text()
    for unchanged in (folder / "model").iterdir():
        unchanged.unlink()
    (folder / "model" / "mine.yaml").write_text(small.replace("name: small", "name: mine"))
    (folder / "my.yaml").write_text("model: mine\ndata: tokens\ntrain: {steps: no}\n")
    preflight = ["cola_train.commands.preflight", "--elsewhere"]
    preflight += [f"--{name}=1" for name in ("nodes", "processes-per-node")]
    for command in (["cola_train"], ["cola_train.commands.prepare"], ["cola_train.commands.plan"],
                    [*preflight, "--gpus-per-node=0"]):  # fmt: skip
        wrong = run_forked("-m", *command, folder / "my.yaml", expect=2)
        assert f"error: {folder}/my.yaml: train.steps: must be a whole number" in wrong.stderr
        own = ["--config-dir", folder, "model=mine", "train.steps=0"]
        wrong = run_forked("-m", *command, *own, expect=2)
        assert wrong.stderr.startswith("error: train.steps: must be at least 1"), wrong.stderr
    shown = run_forked("-m", "cola_train", "--cfg", "job", "-cd", folder, "model=mine")
    assert yaml.safe_load(shown.stdout)["model"]["name"] == "mine"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trian: {steps: 5}", "my.yaml: option `trian.steps` does not exist; did you mean `train."),
        ("model: 60mm", "my.yaml: model: `60mm` does not exist; did you mean `60m`?"),
        ("method: {name: colla}", "my.yaml: method: `colla` does not exist; did you mean `cola`"),
        ("train: {steps: many}", "my.yaml: train.steps: must be a whole number, got 'many'"),
        ("optim: {lr: '1,2'}", "my.yaml: optim.lr: must be a number, got '1,2'"),
        ("train: {micro_batch_size: 5}", "my.yaml: train.micro_batch_size: 5 does not divide"),
        ("train: 7", "my.yaml: train: a group of options is expected, got 7"),
        ("model: null", "my.yaml: model: null is no choice"),
        ("data: [a]", "my.yaml: data: `['a']` does not exist"),
        ("a b: 1", "my.yaml: option `a b` does not exist"),
        ("- train", "my.yaml: a list; groups and options go here"),
        ("42", "my.yaml: cannot be read: it holds no groups"),
        ("a: [1", "my.yaml, line 1: not YAML: "),
        ("a: 1\na: 2", "my.yaml, line 2: not YAML: found duplicate key a"),
        ("defaults: [{model: 60m}]", "my.yaml: defaults: a list of Hydra's"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_the_file(file, text, named, capsys):
    assert exit_code_of([file(text)]) == 2
    out, err = capsys.readouterr()
    assert f"error: {named}" in err and "Traceback" not in err and not out
    assert err.count("error: ") == 1


def test_files_that_are_none(file, capsys):
    assert exit_code_of(["nowhere.yaml"]) == 2
    assert "error: nowhere.yaml: no such file" in capsys.readouterr().err
    assert exit_code_of([file(""), "other.yml"]) == 2
    assert "my.yaml and other.yml: one config file can be given" in capsys.readouterr().err
    assert exit_code_of(["outputs"]) == 2
    assert "write option=value, or give a config file (.yaml)" in capsys.readouterr().err
