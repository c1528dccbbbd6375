"""The plan, which runs it comes to, and the ledger."""

import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sample_ledger

from cola_train.commands import compare
from cola_train.commands.compare import GRID, CompareOptions, composed, planned
from cola_train.compare.ledger import append, locked, read_ledger
from cola_train.compare.members import SPEED_STEPS, Member, Members, flops_per_step
from cola_train.compare.plan import Plan, checked_plan, of_plan, read_plan, write_plan
from cola_train.config.checks import OF_THE_CONFIG
from cola_train.config.schema import Config
from cola_train.errors import TrainingError, UserError

TINY = ["model.d_model=32", "model.d_ff=40", "model.n_layers=2", "model.vocab_size=300",
        "train.sequence_length=32", "train.batch_size=8"]  # fmt: skip
TOKENS = 256 * 1000  # a thousand steps


@cache
def cached(words: tuple[str, ...]) -> Config:
    return composed(words, OF_THE_CONFIG)


def compose(words: Sequence[str]) -> Config:
    return cached(tuple(words))


LINE = {
    "key": "", "phase": "final", "state": "failed", "why": "out of memory", "seed": 0, "lr": None,
    "machine": "", "versions": {}, "date": "2026-11-26",
}  # fmt: skip


def plan(**values: Any) -> Plan:
    arms = {"full": ["method=full"], "cola": ["method=cola"]}
    first = {"arms": arms, "common": TINY, "baseline": "full", "tokens": TOKENS, "seeds": 2}
    return checked_plan({**first, **values}, "")


def line(member: Member, loss: float | None, **values: Any) -> dict[str, Any]:
    """Of a member that is done, or for None failed."""
    state = "failed" if loss is None else "done"
    return {"member": member.name, "key": member.key, "state": state, "val_loss": loss, **values}


def played(members: Members, losses: dict[str, float | None], **values: Any) -> list[Member]:
    """All members, when each has ended with a loss by its name, or 3."""
    lines: dict[str, Any] = {}
    while left := [member for member in members.known(lines) if member.name not in lines]:
        for member in left:
            lines[member.name] = line(member, losses.get(member.name, 3.0), **values)
    return members.known(lines)


def problems_of(**values: Any) -> str:
    with pytest.raises(UserError) as error:
        plan(**values)
    return str(error.value)


def test_all_that_is_wrong_with_a_plan_is_named():
    said = problems_of(baseline="ful", lr=[1e-3, 1.0000000001e-3], arms={"a b": ["seed=1"]})
    assert "baseline: must be one of the arms a b, got 'ful'" in said
    assert "'a b' is no name" in said and "has a rate twice" in said and "a b: seed: " in said
    assert "drop: has no effect" in problems_of(drop=0.1)
    assert "arms: there is none" in problems_of(arms={})
    assert "common: method: has no effect" in problems_of(common=["+method=galore", *TINY])
    assert "optim.lr: the grid of lr says it" in problems_of(
        lr=[1e-3], common=[*TINY, "optim.lr=1e-3"]
    )
    for word in ("train.steps=5", "++run_dir=x", "run_name=x", "resume=never"):
        assert f"common: {word.lstrip('+').partition('=')[0]}" in problems_of(common=[word])


def test_nonsense_in_the_file_is_refused_by_its_name(tmp_path):
    write_plan(tmp_path, plan(lr=[1e-3]))
    path = tmp_path / "comparison.yaml"
    text = path.read_text()
    assert read_plan(tmp_path) == plan(lr=[1e-3])
    path.write_text(text.replace("[0.001]", "[1e-3]").replace("tokens: 256000", "tokens: 2.56e5"))
    assert read_plan(tmp_path) == plan(lr=[1e-3])  # as one types it
    for nonsense in ("- 1", "", "{", "arms: 3", text.replace("seeds: 2", "seeds: many"),
                     text + "sedes: 2", text.replace("[method=cola]", "null"),
                     text.replace("tokens: 256000", "tokens: -1")):  # fmt: skip
        path.write_text(nonsense)
        with pytest.raises(UserError, match=r"comparison\.yaml"):
            read_plan(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path)


def test_what_is_typed_later_adds_and_changes_nothing_that_has_run():
    first = planned(CompareOptions(methods=["full", "cola"], tokens=1e6), None, TINY)
    assert (first.baseline, first.tokens, first.lr) == ("full", 1_000_000, list(GRID))
    more = CompareOptions(
        methods=["cola", "galore"], arms={"wide": ["method=cola", "method.rank=16"]}, seeds=5,
        lr=["0.5", "1e-3"],
    )  # fmt: skip
    second = planned(more, first, [])
    assert list(second.arms) == ["full", "cola", "galore", "wide"] and second.seeds == 5
    assert second.lr == sorted({*GRID, 0.5}) and second.common == TINY
    assert planned(CompareOptions(), second, []) == second
    changing = CompareOptions(
        arms={"wide": ["method=cola"]}, tokens=2e6, budget="flops", baseline="cola", lr_share=0.5
    )
    with pytest.raises(UserError, match="lr: own here"):
        planned(CompareOptions(lr=["own"]), second, [])
    with pytest.raises(UserError) as error:
        planned(changing, second, [*TINY, "train.z_loss=1e-4"])
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        "baseline", "tokens", "budget", "lr_share", "common", "arms"
    ]  # fmt: skip
    for options, what in (
        (CompareOptions(tokens=1e6), "methods: missing"),
        (CompareOptions(methods=["full"]), "tokens: missing"),
        (CompareOptions(methods=["cola"], arms={"cola": []}, tokens=1e6), "cola is in methods too"),
        (CompareOptions(methods=["full"], tokens=1e6, lr=["fast"]), "lr: must be grid, own"),
    ):
        with pytest.raises(UserError, match=what):
            planned(options, None, [])


def test_every_arm_that_cannot_run_is_named():
    with pytest.raises(UserError) as error:
        Members(plan(arms={"full": ["method=ful"], "cola": ["method.rank=-1"]}), compose)
    said = str(error.value)
    assert "arm full: method: " in said and "arm cola: method.rank" in said
    with pytest.raises(UserError, match="tokens: 100 are less than half a step of full"):
        Members(plan(tokens=100), compose)


def test_short_runs_choose_the_rate_of_the_whole_ones():
    members = Members(plan(lr=[1e-3, 2e-3], lr_share=0.2), compose)
    short = members.known({})
    assert [(m.arm, m.phase, m.lr, m.seed, m.steps) for m in short] == [
        (arm, "lr", lr, 0, 200) for arm in ("full", "cola") for lr in (1e-3, 2e-3)
    ]
    all_ = played(members, {"full+lr-0.002": 2.9, "cola+lr-0.002": None})
    whole = [m for m in all_ if m.phase == "final"]
    assert [(m.name, m.lr, m.steps) for m in whole] == [
        ("full+seed-0", 2e-3, 1000), ("full+seed-1", 2e-3, 1000),
        ("cola+seed-0", 1e-3, 1000), ("cola+seed-1", 1e-3, 1000),
    ]  # fmt: skip
    assert whole[1].given == (*TINY, "method=full", "train.steps=1000", "seed=1", "optim.lr=0.002")
    assert len({m.key for m in all_}) == len(all_)
    none = {"cola+lr-0.001": None, "cola+lr-0.002": None}
    assert {m.arm for m in played(members, none) if m.phase == "final"} == {"full"}


def test_whole_runs_can_choose_the_rate_and_are_the_first_seed_then():
    members = Members(plan(lr=[1e-3, 2e-3], lr_share=1), compose)
    tried = {m.name: m for m in members.known({})}
    assert {m.steps for m in tried.values()} == {1000}
    final = {m.name: m for m in played(members, {"full+lr-0.002": 2.9}) if m.phase == "final"}
    assert final["full+seed-0"].key == tried["full+lr-0.002"].key
    assert final["full+seed-0"].words == tried["full+lr-0.002"].words  # its curve too
    assert final["full+seed-1"].key not in {m.key for m in tried.values()}


def test_an_arm_that_is_not_better_enough_is_dropped():
    whole = lambda drop, loss: {  # noqa: E731
        m.arm
        for m in played(Members(plan(lr=[1e-3], drop=drop), compose), {"cola+lr-0.001": loss})
        if m.phase == "final"
    }
    assert whole(0.05, 2.96) == {"full"} and whole(0.05, 2.94) == {"full", "cola"}
    assert whole(-0.05, 3.06) == {"full"} and whole(-0.05, 3.04) == {"full", "cola"}
    assert whole(None, 9.0) == {"full", "cola"}
    # no arm goes on before the baseline's rates are all known
    members = Members(plan(lr=[1e-3], drop=0.0), compose)
    cola = next(m for m in members.known({}) if m.arm == "cola")
    assert all(m.phase == "lr" for m in members.known({cola.name: line(cola, 1.0)}))


def test_equal_flops_within_half_a_step_and_one_percent():
    arms = {name: [f"method={name}"] for name in ("full", "cola", "sltrain", "galore")}
    arms["muon"], arms["long"] = ["method=cola", "optim=muon"], ["train.sequence_length=64"]
    members = Members(plan(arms=arms, budget="flops", seeds=1), compose)
    whole = {m.arm: m for m in members.known({})}
    assert whole["full"].steps == 1000
    spent = {arm: m.steps * flops_per_step(members.configs[arm]) for arm, m in whole.items()}
    assert spent == {arm: m.flops for arm, m in whole.items()}
    for arm in arms:
        half = flops_per_step(members.configs[arm]) / 2
        assert abs(spent[arm] - spent["full"]) <= half * (1 + 1e-9)
        assert math.isclose(spent[arm], spent["full"], rel_tol=0.01)
    assert len({m.steps for m in whole.values()}) == len(arms)  # so it was no mere equality


def test_equal_time_by_measured_speed():
    members = Members(plan(budget="seconds", seeds=1), compose)
    full, cola = members.known({})
    assert [full.phase, full.steps, cola.steps] == ["speed", SPEED_STEPS, SPEED_STEPS]
    of_speed = {"tokens": 30 * 256, "steps": 30}
    lines = {full.name: line(full, 3.0, tokens_per_second=1000.0, **of_speed)}
    assert [m.name for m in members.known(lines)][2:] == ["full+seed-0"]  # it need not wait
    lines[cola.name] = line(cola, 3.0, tokens_per_second=1500.0, **of_speed)
    assert [m.steps for m in members.known(lines)][2:] == [1000, 1500]
    lines[cola.name] = line(cola, None)
    assert [m.name for m in members.known(lines)][2:] == ["full+seed-0"]  # one failed, one goes on


def test_a_line_cut_short_costs_itself_alone(tmp_path, capsys):
    of = sample_ledger.line(sample_ledger.plan(["a"]), "a", "final", 0, 1e-3)
    del of["member"]
    append(tmp_path, {"member": "one", **of})
    append(tmp_path, {"member": "two", **of})
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # a crash, a full disk
    append(tmp_path, {"member": "three", **of})
    append(tmp_path, {"member": "one", **of, "state": "failed"})
    append(tmp_path, {"member": "one", **of, "val_loss": "low"})
    assert {name: each["state"] for name, each in read_ledger(tmp_path).items()} == {
        "three": "done", "one": "failed"
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "line 2 is damaged" in said and "line 5 is damaged" in said
    assert len(path.read_text().splitlines()) == 5  # nothing is ever removed


def test_one_command_at_a_time(tmp_path):
    with (
        locked(tmp_path / "new"),
        pytest.raises(UserError, match="another cola-compare works on"),
        locked(tmp_path / "new"),
    ):
        pass
    with locked(tmp_path / "new"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written or locked"), locked(tmp_path / "file"):
        pass


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """cola-compare in this process: (exit code, what it says)."""

    def run(*words: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cola-compare", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            compare.main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    return run


def test_a_report_runs_nothing_and_changes_nothing(tmp_path, command):
    folder = f"folder={tmp_path}/mine"
    assert command(folder, "report=true", "methods=[full]", "tokens=1e6")[0] == 2
    assert not (tmp_path / "mine").exists()
    (tmp_path / "mine").mkdir()
    write_plan(tmp_path / "mine", plan())
    code, said = command(folder, "report=true", "methods=[galore]", "jobs=2", "retry=true")
    assert code == 2 and "it changes no plan" in said and "jobs: has no effect" in said
    with locked(tmp_path / "mine"):  # also while another command runs its runs
        assert command(folder, "report=true")[0] == 0
    assert (tmp_path / "mine/report.json").exists()
    assert read_plan(tmp_path / "mine") == plan()


def test_a_report_shows_arms_whose_options_are_gone(tmp_path, command):
    """Not those of another plan: the arm had other words, or no seed or rate is the plan's."""
    now = plan(arms={"full": ["method=full"], "gone": ["method.gone=1"]}, lr=[1e-3])
    write_plan(tmp_path, now)
    arm = [*now.common, *now.arms["gone"]]
    start = {**LINE, "words": [*arm, "train.steps=10", "seed=0"], "arm": "gone"}
    for member, change in {
        "gone+seed-0": {}, "gone+seed-9": {"seed": 9}, "gone+lr-0.5": {"lr": 0.5},
        "gone+lr-0.001": {"words": ["method.gone=2"]},
        "gone+seed-1": {"seed": 1, "words": [*arm, "method.more=1", "train.steps=10", "seed=1"]},
    }.items():  # fmt: skip
        append(tmp_path, {**start, "member": member, "key": member, **change})
    assert [of["member"] for of in of_plan(now, read_ledger(tmp_path).values())] == ["gone+seed-0"]
    assert command(f"folder={tmp_path}", "report=true")[0] == 1  # one has failed
    assert "out of memory" in (tmp_path / "report.md").read_text()


def test_a_report_has_whole_runs_at_the_best_rate_alone():
    now = plan(lr=[1e-3, 2e-3])
    of = {
        "arm": "full",
        "seed": 0,
        "state": "done",
        "words": [*TINY, "method=full", "train.steps=9"],
    }
    runs = [("lr", 1e-3, 3.0), ("lr", 2e-3, 2.9), ("final", 1e-3, 2.4), ("final", 2e-3, 2.5)]
    lines = [{**of, "phase": phase, "lr": lr, "val_loss": loss} for phase, lr, loss in runs]
    assert of_plan(now, lines) == [lines[0], lines[1], lines[3]]


def test_mistakes_end_with_2_and_leave_nothing(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no clone
    folder = f"folder={tmp_path}/mine"
    code, said = command(folder, "-m", "methods=[full]", "tokens=1e6", "seed=1,2")
    assert code == 2 and "error: --multirun" in said
    code, said = command(folder, "methods=[full]", "tokens=1e6", "slurm=true", *TINY)
    assert code == 2 and ("no sbatch" in said or "no launch/submit.sh" in said)
    assert not (tmp_path / "mine").exists()
    (tmp_path / "mine/slurm").mkdir(parents=True)
    array = {
        "name": "compare-1",
        "job": "12",
        "tasks": {"1": {"name": "a", "key": "b", "launch": 1}},
    }
    (tmp_path / "mine/slurm/compare-1.json").write_text(json.dumps(array))
    code, said = command(folder, "methods=[full]", "tokens=1e6", *TINY)
    assert code == 2 and "slurm: the jobs 12 have runs of" in said
    (tmp_path / "mine/slurm/compare-1.json").write_text("{}")
    code, said = command(folder, "methods=[full]", "tokens=1e6", *TINY)
    assert code == 2 and "squeue --name=compare-1" in said


def test_a_full_disk_is_said_without_a_traceback(tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "ledger.jsonl"))

    monkeypatch.setattr(compare, "write_report", full)
    write_plan(tmp_path, plan())
    monkeypatch.setattr(sys, "argv", ["cola-compare"])
    with pytest.raises(TrainingError, match=r"ledger.jsonl: cannot be written: No space left"):
        compare.compare({"folder": str(tmp_path), "report": True}, [])
