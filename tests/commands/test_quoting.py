"""Texts of the command line arrive as they were typed, or the message says how to type them."""

import shlex
from types import SimpleNamespace

import pytest

from cola_train.commands import sweep
from cola_train.commands.cli import compose
from cola_train.commands.generate import GenerateOptions
from cola_train.commands.groups import register_options
from cola_train.commands.overrides import check_overrides
from cola_train.commands.quoting import PARSER
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.fields import field_types
from cola_train.config.schema import Config
from cola_train.errors import UserError

AS_TYPED = [
    "1e3", "007", "1.10", "true", "nan", "1_000", "+5", "-0", "", "def ", " two  words ", "a:b",
    "x-optim.lr-1e-3+seed-2", "50%", "a/b@c", "back\\slash",
]  # fmt: skip
RIDDLES = [
    "a=b", "def main(x): ", "a,b", "1,2", "{a: b}", "[1,2]", "range(1,3)", "f(x)", 'say "hi"',
    "it's", "ends=\\", 'both\\"=', "${", "${a=", "größe", "x#y", "a\nb", "'", '"', "$(id)",
]  # fmt: skip


def composed(*overrides: str) -> Config:
    good, problems = check_overrides(list(overrides))
    return load(compose(good, problems), problems, checks=OF_THE_CONFIG)


@pytest.mark.parametrize("text", AS_TYPED)
def test_a_text_is_what_was_typed(text):
    config = composed(
        f"evaluation.sample_prompt={text}", f"tracking.tags=[a,{text.strip() or 'b'}]"
    )
    assert config.evaluation.sample_prompt == text
    assert config.tracking.tags == ["a", text.strip() or "b"]


@pytest.mark.parametrize("text", [*AS_TYPED, *RIDDLES, "${x} \\\\${y}", "null", "\\\n", '"a", b'])
def test_a_prompt_needs_no_quotes(text):
    """But those of a shell."""
    register_options("cola-generate", GenerateOptions)
    words = ["run_dir=a", f"prompt={text}"]
    good, problems = check_overrides(words, field_types(GenerateOptions), groups={})
    assert problems == [] and compose(good, [], "generate")["prompt"] == text


@pytest.mark.parametrize("text", RIDDLES)
def test_the_message_shows_what_to_type(text):
    with pytest.raises(UserError) as refused:
        composed(f"evaluation.sample_prompt={text}")
    (problem,) = refused.value.problems
    (word,) = shlex.split(problem.rpartition("type ")[2])
    assert composed(word).evaluation.sample_prompt == text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("data.files=[größe/*.txt,b c.txt]", ["größe/*.txt", "b c.txt"]),
        ("data.files=[lr=1/*.txt]", ["lr=1/*.txt"]),
        ("data.files=a.txt,b.txt", ["a.txt", "b.txt"]),
        ("data.files=['a,b.txt']x", None),
    ],
)
def test_of_a_list_each_item_is_quoted(typed, meant):
    with pytest.raises(UserError) as refused:
        composed("data=text", typed)
    (problem,) = refused.value.problems
    if meant is not None:
        (word,) = shlex.split(problem.rpartition("type ")[2])
        assert composed("data=text", word).data.files == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("{big:[method=cola,method.rank=8], s:[ a=1 ]}",
         {"big": ["method=cola", "method.rank=8"], "s": ["a=1"]}),
        ("{b:[optim.betas=[0.9,0.99]]}", {"b": ["optim.betas=[0.9,0.99]"]}),
        ("""{b:['a=",1]']}""", {"b": ['a=",1]']}),
        ("{b:method=cola}", {"b": "method=cola"}),  # a type's check says what is wrong
    ],
)  # fmt: skip
def test_overrides_in_a_mapping_need_no_quotes(typed, meant):
    """Those of cola-compare's arms."""
    (word,), problems = check_overrides(
        [f"arms={typed}"], {"arms": dict[str, list[str]]}, groups={}
    )
    assert problems == [] and PARSER.parse_override(word).value() == meant


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lr=1e-3,1e-2", "several values need --multirun (-m)"),
        ("method=full,cola", "several values need --multirun (-m)"),
        ("optim.betas=0.8,0.9", "for a list, type 'optim.betas=[0.8,0.9]'"),
        ("tracking.tags=a b,c", 'for a list, type \'tracking.tags=["a b","c"]\''),
        ("model=glob(*)", "several values need --multirun (-m)"),
        ("train.steps=1=2", "train.steps: must be a whole number, got '1=2'"),
        (f"train.steps={'1' * 5000}", "train.steps: must be a whole number, got '1111"),
        ("kernels=a=b", "kernels: must be one of auto"),
        ("model=a=b", "model: `a=b` does not exist"),
        ("engine.overides=a=b", "did you mean `engine.overrides`"),
    ],
)
def test_one_problem_and_no_second(override, named):
    with pytest.raises(UserError) as refused:
        composed(override)
    (problem,) = refused.value.problems
    assert named in problem and len(problem) < 400


@pytest.mark.parametrize("override", ["experiment=null", "~experiment"])
def test_no_experiment(override):
    assert composed("experiment=paper_60m", override).train.steps == 300


def test_names_of_a_sweeps_jobs_can_be_typed(monkeypatch):
    """After resume= and run_name=, in a shell; and others have others."""
    nasty = [*AS_TYPED, *RIDDLES, "1e+3", "b+seed-1", "x" * 300, f"{'x' * 300}y", "a_b", "a b"]
    jobs = [["optim.lr=0.01", "seed=2"], ["recompute=cola_m"], ["++data.max_files=2"]]
    jobs += [[f'evaluation.sample_prompt="{text}"', "seed=1"] for text in nasty]
    names = set()
    for words in jobs:
        overrides = SimpleNamespace(overrides=SimpleNamespace(task=words))
        monkeypatch.setattr(sweep.HydraConfig, "get", lambda overrides=overrides: overrides)
        name = sweep.job_name("small-cola-stdlib", sweep.swept([]))
        assert PARSER.parse_override(f"resume={name}").value() == name
        assert shlex.quote(name) in (name, f"'{name}'") and not set(name) & set("=, '\"$\\*~#")
        names.add(name)
    assert len(names) == len(jobs)
    assert "small-cola-stdlib+optim.lr-0.01+seed-2" in names


def test_a_home_is_found_wherever_a_path_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = composed(
        "run_dir=~/run", "resume=~/other", "data=text", "data.files=[~/a b/*.txt,/c]",
        "data.cache_dir=~", "data.tokenizer=~/t.json", "engine=deepspeed",
        "engine.zero_stage=3", "engine.offload_optimizer=nvme", "engine.nvme_path='~/disk'",
    )  # fmt: skip
    assert config.run_dir == f"{tmp_path}/run" and config.resume == f"{tmp_path}/other"
    assert config.data.files == [f"{tmp_path}/a b/*.txt", "/c"]
    assert config.data.cache_dir == str(tmp_path)
    assert config.data.tokenizer == f"{tmp_path}/t.json"
    assert config.engine.nvme_path == f"{tmp_path}/disk"
    monkeypatch.setenv("COLA_CACHE", "~/cache")
    assert composed().data.cache_dir == f"{tmp_path}/cache"
    assert composed("data=tokens", "data.path=~/shards").data.path == f"{tmp_path}/shards"


def test_without_a_home_only_what_needs_one_is_refused(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    monkeypatch.setenv("COLA_CACHE", "/cache")
    assert composed("run_dir=/runs/1").data.cache_dir == "/cache"
    with pytest.raises(UserError, match="run_dir: no home folder is known for ~; give the whole"):
        composed("run_dir=~/1")


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "~/a", "a/"])
def test_a_run_name_is_a_folders(name):
    with pytest.raises(UserError, match="run_name: must be the name of a folder"):
        composed(f"run_name={name}")


@pytest.mark.parametrize(
    "option", ["run_dir", "resume", "data.cache_dir", "data.tokenizer", "data.path"]
)
def test_no_path_is_empty(option):
    with pytest.raises(UserError, match=f"{option}: must be a path, got ''"):
        composed("data=c4", f"{option}=")
