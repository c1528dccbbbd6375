"""What a config refuses, before anything starts, and that every file of configs/ is one."""

import dataclasses
import re
from collections.abc import Iterator

import pytest
from helpers import exit_code_of, make_config

from cola_train.commands.cli import compose
from cola_train.commands.config_file import read_command_line
from cola_train.commands.groups import UNIONS, config_dir
from cola_train.commands.overrides import check_overrides, without_replaced
from cola_train.config import checks
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.data.options import TokensOptions
from cola_train.errors import UserError
from cola_train.methods.full.options import FullOptions
from cola_train.methods.recipe import Recipe, by_size
from cola_train.schedule import learning_rate

# (overrides after the tiny defaults, what the message must name)
BAD_OPTIONS = [
    (["trian.steps=5"], ["trian.steps", "`train.steps`"]),
    (["lr=1"], ["lr", "`optim.lr`"]),
    (["model=60"], ["60", "`60m`"]),
    (["method=colaa"], ["colaa", "`cola`"]),
    (["experiment=paper_61m"], ["`paper_60m`"]),
    (["data=wikipedia"], ["wikipedia", "stdlib, text"]),
    (["data.source=c4"], ["data.source", "data=stdlib or data=text or data=c4"]),
    (["method=null"], ["method", "null", "cola"]),
    (["rank=64"], ["`method.rank`"]),
    (["method=full", "method.rank=3"], ["method.rank", "method=cola", "method=full"]),
    (["train.batch_tokens=abc"], ["train.batch_tokens", "whole number"]),
    (["train=null"], ["train: a group", "null"]),
    (["data=stdlib"], ["data.files", "data=text", "data=stdlib"]),
    (["train.steps=many"], ["train.steps", "whole number", "many"]),
    (["train.steps=0"], ["train.steps", "at least 1"]),
    (["optim.lr=-1"], ["optim.lr", "more than 0"]),
    (["optim.betas=[0.9,1.0]"], ["optim.betas", "below 1"]),
    (["optim.clip=nan"], ["optim.clip", "finite"]),
    (["method.activation=relu"], ["method.activation", "low_rank, both, full_rank"]),
    (["method.rank=64"], ["method.rank", "from 1 to", "32"]),
    (["method.ranks={q:64}"], ["method.ranks: q has a rank of 64", "from 1 to", "32"]),
    (["method.ranks={gat:8}"], ["method.ranks: gat: must be one of q, k, v, o, gate, up, down"]),
    (["method.ranks={q:0}"], ["method.ranks: q: must be at least 1"]),
    (["method.ranks={q:wide}"], ["method.ranks: q: must be a whole number"]),
    (["method.ranks=q:8"], ["method.ranks: must be a group", "in quotes"]),
    (["rank_pattern=1"], ["`method.ranks`"]),
    (
        ["method.rank=8", "method.ranks={q:8,k:8,v:8,o:8,gate:8,up:8,down:4}"],
        ["method.rank: 8 has no effect", "method.ranks names every projection"],
    ),
    (["method=lora", "method.ranks={q:8}"], ["method.ranks", "method=cola|low_rank"]),
    (["method=low_rank", "method.dlr=1", "method.ranks={q:3}"], ["method.ranks: DLR's copies"]),
    (["method.rank_ratio=0.001"], ["method.rank_ratio", "rank of 0"]),
    (["model.n_heads=5"], ["model.n_heads", "divide", "32"]),
    (["kernels=cuda"], ["kernels", "auto, torch, triton"]),
    (["kernels=triton"], ["kernels", "triton cannot run here", "kernels=torch"]),
    (["method=full", "recompute=cola_m"], ["recompute", "method=cola", "recompute=full"]),
    (["model.attention=flash"], ["model.attention", "flash"]),
    (
        ["train.batch_size=8", "train.batch_tokens=256"],
        ["train.batch_size: 8 sequences and train.batch_tokens=256", "to null"],
    ),
    (["train.batch_size=null", "train.batch_tokens=100"], ["train.batch_tokens", "multiple"]),
    (["train.micro_batch_size=3"], ["train.micro_batch_size", "divide", "8"]),
    (["optim.warmup_steps=1000000"], ["optim.warmup_steps", "train.steps"]),
    (["resume=nowhere/at/all"], ["resume", "nowhere/at/all"]),
    (["data.files=[/nowhere/*.txt]"], ["data.files", "/nowhere/*.txt"]),
    (["data.tokenizer=/nowhere/tokenizer.json"], ["data.tokenizer", "/nowhere/tokenizer.json"]),
    (["data.vocab_size=400"], ["vocab_size", "400", "300"]),
    (["data=tokens"], ["data.path", "missing"]),
    (["data=tokens", "data.path=/nowhere"], ["data.path", "/nowhere"]),
    (["data=c4", "data.path=/nowhere", "data.tokenizer=train"], ["data.path", "/nowhere"]),
    (
        ["data=tokens", "data.workers=2"],
        ["data.workers: 2", "data=stdlib|text"],
    ),
    (["data=c4", "data.validation_fraction=0.2"], ["data.validation_fraction: 0.2", "data=c4"]),
    (["engine=deepspeed", "engine.sharding=full"], ["engine.sharding", "and this is engine=deep"]),
    (["engine.shard_size=2"], ["engine.shard_size: 2 has no effect", "engine.sharding=hybrid"]),
    (["data.tokenizer=gpt2", "data.vocab_size=280"], ["data.vocab_size: 280", "not trained here"]),
    (
        ["data.validation_files=[/a/*.txt]", "data.validation_fraction=0.2"],
        ["data.validation_fraction: 0.2 has no effect with data.validation_files"],
    ),
    (
        ["data.packing=per_document", "data.document_mask=true"],
        ["data.document_mask: has no effect with data.packing=per_document"],
    ),
    (
        ["train.precision=fp8", "kernels=triton", "model.d_model=24"],
        ["for NVIDIA GPUs, not for cpu", "kernels=triton has no fp8", "multiples of 16", "24;"],
    ),
    (["train.stop_after=400"], ["train.stop_after: 400 has no effect", "train.steps (300)"]),
    (["seed=18446744073709551616"], ["seed", "at most 9223372036854775807"]),
    (["engine.timeout_seconds=1e20"], ["engine.timeout_seconds", "to 1e+06"]),
    (["train.threads=1000000"], ["train.threads", "at most 1024"]),
    (["resume=" + 300 * "x"], ["resume", "is no folder"]),
    (["train.steps"], ["train.steps", "option=value"]),
    (["engine.sharding=some"], ["engine.sharding", "full, hybrid, replicate"]),
    (["run_name=${nothing}"], ["nothing"]),
    (["+train.extra=1"], ["train.extra"]),
    (["tracking.progress=maybe"], ["tracking.progress", "true or false"]),
    (["data.files=text.txt"], ["data.files", "list"]),
]


@pytest.mark.parametrize(("overrides", "named"), BAD_OPTIONS, ids=lambda v: " ".join(v)[:40])
def test_bad_options_exit_2_before_anything_starts(
    tiny, tmp_path, capsys, monkeypatch, overrides, named
):
    monkeypatch.setattr("cola_train.distributed.start", lambda *_: pytest.fail("started"))
    assert exit_code_of([*tiny, f"run_dir={tmp_path / 'run'}", *overrides]) == 2
    out, err = capsys.readouterr()
    assert all(word in err for word in named), err
    assert "Traceback" not in err and not out
    assert not (tmp_path / "run").exists()


def union_options() -> Iterator[tuple[str, str, str]]:
    """(group, a member, an option that it lacks and another one has)"""
    for group, union in UNIONS.items():
        names = {tag: {f.name for f in dataclasses.fields(m)} for tag, m in union.members.items()}
        for tag in names:
            for option in sorted(set.union(*names.values()) - names[tag]):
                yield group, tag, option


@pytest.mark.parametrize(("group", "member", "option"), list(union_options()))
def test_an_option_of_another_member_is_refused(group, member, option):
    good, problems = check_overrides([f"{group}={member}", f"{group}.{option}=7"])
    assert not problems
    with pytest.raises(UserError) as refused:
        load(compose(good, problems), checks=[])
    (line,) = [line for line in refused.value.problems if option in line]
    assert re.match(rf"{group}\.{option}: '?7'? is an option of {group}=", line)
    said = rf"(one of these|{group}=\w+), or leave it out"
    assert re.search(rf", and this is {group}={member}; say {said}$", line)


def test_a_source_on_the_command_line_replaces_an_experiments(tmp_path):
    """With the options of its own: the paper's recipe on shards that are prepared."""
    overrides = ["experiment=paper_60m", "data=tokens", f"data.path={tmp_path}"]
    config = load(compose(overrides, []), checks=OF_THE_CONFIG)
    assert config.data == TokensOptions("tokens", packing="per_document", path=str(tmp_path))
    config = load(compose(["experiment=paper_60m", "data=c4"], []), checks=OF_THE_CONFIG)
    assert config.data.max_files == 15
    with pytest.raises(UserError, match=r"data.max_files: 3 is an option of"):
        load(compose([*overrides, "++data.max_files=3"], []), checks=OF_THE_CONFIG)


def test_all_problems_at_once(tiny, tmp_path, capsys):
    bad = ["train.stepz=1", "optim.lr=0", "model.n_heads=5", "method=colla"]
    assert exit_code_of([*tiny, f"run_dir={tmp_path / 'run'}", *bad]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == 4
    assert all(name in err for name in ("train.steps", "optim.lr", "model.n_heads", "cola"))


def test_every_config_group_and_experiment_loads(corpus, monkeypatch):
    """Each YAML file, with no unknown or missing key; the paper's recipe for every size."""
    monkeypatch.setattr(checks, "find_spec", lambda name: name)  # extras may not be installed
    recipe = {  # arXiv 2502.10940's official code: lr, steps, warm-up
        "60m": (6e-3, 10_000, 2000),
        "130m": (3e-3, 20_000, 2000),
        "350m": (3e-3, 60_000, 6000),
        "1b": (2e-3, 100_000, 10_000),
        "7b": (1e-3, 150_000, 15_000),
    }
    for file in sorted(config_dir().glob("*/*.yaml")):
        group, name = file.parent.name, file.stem
        extra = [f"data.files=[{corpus}/*.txt]"] if (group, name) == ("data", "text") else []
        if group == "experiment":
            continue
        if f"{group}={name}" not in ("data=tokens", "data=hf"):  # what they name is looked up
            make_config(f"{group}={name}", *extra)
    for size, (lr, steps, warmup) in recipe.items():
        for method in ("cola", "full"):
            config = make_config(f"experiment=paper_{size}", f"method={method}")
            assert (config.model.name, config.method.name) == (size, method)
            assert (config.optim.lr, config.train.steps, config.optim.warmup_steps) == (
                lr,
                steps,
                warmup,
            )
            assert config.optim.betas == [0.9, 0.999] and config.optim.weight_decay == 0.01
            assert config.optim.clip == 0.5 and config.batch_size == 512
            assert config.data.packing == "per_document" and config.data.tokenizer == "t5-base"
            best = make_config(f"experiment=best_{size}", f"method={method}")
            assert (best.model, best.data, best.train) == (config.model, config.data, config.train)
            assert getattr(best.method, "init_scale", None) == {"cola": 0.5}.get(method)
            assert (best.optim.name, best.optim.warmup(steps)) == ("muon", steps // 20)
            rates = [learning_rate(best.optim, step, steps) for step in (steps // 20, steps)]
            assert rates == pytest.approx([lr, lr / 10])
    assert rank_of("model=130m") == 256
    assert rank_of("model=1b", "method.rank_ratio=0.125") == 256
    assert rank_of("method.rank=7", "method.rank_ratio=0.5") == 7
    config = make_config("model=350m")
    assert config.method.placement(config.model) == "low_rank"


def test_a_method_brings_its_own_recipe(monkeypatch, capsys, tmp_path):
    """To the paper's experiments, at their size whatever the model; what is typed wins over it."""

    def recipe(cls, size, steps):
        return Recipe(by_size((1e-2, 1e-2, 1e-2, 1e-2, 5e-3), size), steps // 10, 0.0, None)

    monkeypatch.setattr(FullOptions, "recipe", classmethod(recipe))
    optim = make_config("experiment=paper_60m", "method=full", "train.steps=70").optim
    assert (optim.lr, optim.warmup_steps, optim.weight_decay, optim.clip) == (1e-2, 7, 0.0, None)
    assert make_config("experiment=paper_7b", "method=full", "model=small").optim.lr == 5e-3
    assert make_config("experiment=paper_7b", "method=cola").optim.lr == 1e-3
    typed = make_config("experiment=paper_7b", "method=full", "optim.lr=0.5", "optim.clip=2").optim
    assert (typed.lr, typed.clip, typed.weight_decay) == (0.5, 2.0, 0.0)
    mine = tmp_path / "mine.yaml"
    mine.write_text("optim: {lr: '${recipe:1b,lr}'}\n")
    assert read_command_line([str(mine), "experiment=paper_60m"]).overrides == [
        "experiment=paper_60m"  # which says the rate, too
    ]
    for wrong, said in (
        ("mine,lr", "known: 60m, 130m"), ("1b,rate", "field `rate`"), ("1b", "known: lr, warmup"),
    ):  # fmt: skip
        mine.write_text(f"optim: {{lr: '${{recipe:{wrong}}}'}}\n")
        assert exit_code_of([str(mine)]) == 2
        assert said in (error := capsys.readouterr().err) and error.startswith("error: recipe: ")


def test_a_batch_in_tokens_is_enough():
    """Over the default and over an experiment's sequences, and the other way round."""
    assert make_config().batch_size == make_config().train.batch_size == 32
    assert make_config("train.batch_tokens=1024").batch_size == 4
    assert make_config("train.batch_size=null", "train.batch_tokens=1024").batch_size == 4
    paper = make_config("experiment=paper_60m", "train.batch_tokens=49152")
    assert paper.batch_size == 192 and paper.train.batch_size is None
    assert make_config("experiment=paper_60m", "train.batch_tokens=null").batch_size == 512
    in_tokens = {"train": {"batch_size": 6, "batch_tokens": 1024}}
    in_sequences = {"train": {"batch_size": 6, "batch_tokens": None}}
    assert without_replaced(in_tokens, ["train.batch_size=6"]) == in_sequences


def rank_of(*overrides: str) -> int:
    config = make_config(*overrides)
    return config.method.bottleneck(config.model)


def test_batch_must_divide_among_processes(monkeypatch, tiny, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert exit_code_of([*tiny]) == 2
    assert "multiple of 3" in capsys.readouterr().err


def test_configs_are_frozen(tiny):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config(*tiny).seed = 1
