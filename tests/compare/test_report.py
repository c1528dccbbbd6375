"""A comparison's report: its statistics against formulas, its page against the ledger's lines."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY
from page_numbers import check_page
from sample_ledger import NAMES, failed, finished, line, plan

from cola_train.compare import svg
from cola_train.compare.intervals import mean_interval, two_sided_quantile
from cola_train.compare.report import write_report
from cola_train.compare.sentences import design, findings
from cola_train.compare.summary import summary
from cola_train.compare.verdicts import against

COMMITTED = sorted((REPOSITORY / "docs" / "results").glob("**/ledger.jsonl"))


@pytest.mark.parametrize(
    ("degrees", "confidence", "t"),  # of printed tables
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (9, 0.95, 2.262),
     (30, 0.95, 2.042), (120, 0.95, 1.980), (2, 0.99, 9.925), (5, 0.9, 2.015)],
)  # fmt: skip
def test_students_quantile_is_the_tables(degrees, confidence, t):
    assert two_sided_quantile(confidence, degrees) == pytest.approx(t, abs=5.1e-4)


def test_the_interval_of_three_differences_by_hand():
    found = mean_interval([-0.02, -0.03, -0.04])  # s = 0.01, t = 4.302653
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((-0.03, -0.03 - half, -0.03 + half))


BASE = {0: 4.0, 1: 4.1, 2: 3.9}  # the seeds differ by more than the arms do


@pytest.mark.parametrize(
    ("own", "verdict", "words"),
    [
        ({0: 3.97, 1: 4.06, 2: 3.88}, "better",
         "better: perplexity 3.0 % lower (0.5 to 5.3 % lower)"),
        ({0: 4.03, 1: 4.14, 2: 3.92}, "worse",
         "worse: perplexity 3.0 % higher (0.5 to 5.6 % higher)"),
        ({0: 3.99, 1: 4.12, 2: 3.89}, "not told apart",
         "not told apart by 3 seeds: between 4.2 % lower and 4.4 % higher"),
        ({1: 4.0, 7: 1.0}, "one seed",
         "one seed tells nothing: 9.5 % lower in it, which may be luck"),
        ({7: 1.0}, "no seed", "no seed that plain has too"),
    ],
)  # fmt: skip
def test_a_verdict_is_of_seeds_in_pairs(own, verdict, words):
    found = against("thin", "plain", own, BASE)
    assert (found["verdict"], found["words"]) == (verdict, words)


def test_the_pages_numbers_are_the_ledgers(tmp_path):
    its_plan = plan()
    lines = finished(its_plan)
    lines = [failed(of, "out of memory") if of["member"] == "muon+seed-1" else of for of in lines]
    lines[-1]["bits_per_byte"] = None
    write_report(tmp_path, its_plan, lines)
    assert check_page((tmp_path / "report.html").read_text(), its_plan, lines) == len(NAMES)
    its_json = json.loads((tmp_path / "report.json").read_text())
    assert its_json == json.loads(json.dumps(summary(its_plan, lines)))
    table = (tmp_path / "report.md").read_text()
    for arm in its_json["arms"]:
        assert (
            f"| {arm['name']} | {arm['perplexity']:.2f} ± {arm['spread_percent']:.1f} % |" in table
        )


@pytest.mark.parametrize("ledger", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_pages_have_their_ledgers_numbers(ledger):
    its_plan = yaml.safe_load((ledger.parent / "comparison.yaml").read_text())
    lines = [json.loads(text) for text in ledger.read_text().splitlines()]
    whole = {of["arm"] for of in lines if of["phase"] == "final" and of["state"] == "done"}
    page = (ledger.parent / "report.html").read_text()
    assert check_page(page, its_plan, lines) == len(whole & its_plan["arms"].keys())


def test_the_last_line_of_a_member_counts_and_no_other_arms():
    its_plan = plan(["plain", "thin"])
    lines = finished(its_plan)
    stranger = line(plan(["plain", "other"]), "other", "final", 0, 4e-3)
    again = {**lines[-1], "val_loss": 5.0}
    arms = {arm["name"]: arm for arm in summary(its_plan, [*lines, stranger, again])["arms"]}
    assert set(arms) == {"plain", "thin"}
    assert arms["thin"]["seeds"][-1]["perplexity"] == math.exp(5.0)


def test_arms_that_were_validated_on_another_text_are_named():
    its_plan = plan(["plain", "thin", "wild"])
    lines = finished(its_plan)
    assert "other text" not in dict(findings(summary(its_plan, lines)))
    lines[-1]["bits_per_byte"] *= 1.01  # with as many tokens, fewer bytes
    assert dict(findings(summary(its_plan, lines)))["other text"].endswith(": wild.")


def test_arms_that_a_machine_ran_in_another_precision_are_named():
    its_plan = plan(["plain", "thin", "wild"])
    lines = finished(its_plan)
    for each in lines:
        each["precision"] = "bf16"
        each["settings"] |= {"train.precision": "auto"} if each["settings"] else {}
    lines[-1]["precision"] = "fp32"
    assert dict(findings(summary(its_plan, lines)))["other precision"].endswith(": wild.")
    lines[-1]["settings"]["train.precision"] = "fp32"  # as was asked
    assert "other precision" not in dict(findings(summary(its_plan, lines)))


def test_states_are_said_while_members_are_missing_or_have_failed():
    its_plan = plan([*NAMES, "high"], drop=-0.1)
    lines = {of["member"]: of for of in finished(its_plan)}
    for name in ("plain+seed-2", "thinner+seed-1", "thinner+seed-2"):
        del lines[name]
    lines["thin+seed-1"] = failed(lines["thin+seed-1"], "killed")
    long = NAMES[3]
    for of in list(lines.values()):
        if of["arm"] == "wild" or (of["arm"] in ("muon", "high") and of["phase"] == "final"):
            del lines[of["member"]]
        elif of["arm"] == long:
            lines[of["member"]] = failed(of, "diverged")
    for of in lines.values():
        if of["arm"] == long and of["phase"] == "final":
            of["phase"] = "speed"  # it has no whole runs
        if of["arm"] == "high":
            of["val_loss"] += 1
    del lines["muon+lr-0.001"]
    found = summary(its_plan, list(lines.values()))
    assert not found["finished"]
    states = {arm["name"]: (arm["state"], arm["state_words"]) for arm in found["arms"]}
    assert states == {
        "high": ("dropped", "dropped after the short runs"),
        "plain": ("unfinished", "2 of 3 seeds so far"),
        "thin": ("failed", "2 of 3 seeds, 1 failed"),
        "thinner": ("unfinished", "1 of 3 seeds so far"),
        long: ("failed", "failed at every learning rate"),
        "muon": ("unfinished", "3 of 4 learning rates tried"),
        "wild": ("waiting", "not begun"),
    }
    assert dict(findings(found))["dropped"].endswith("the rule below: high.")


def test_the_grids_end_is_flagged_where_it_wins():
    found = summary(plan(), finished(plan()))
    edges = {arm["name"]: arm["lr_edge"] for arm in found["arms"]}
    assert edges["plain"] == edges["thin"] == ""  # 0.002 and 0.004 of 0.001 to 0.008
    assert edges["thinner"] == "the grid's largest"
    assert edges[NAMES[3]] == "the grid's smallest"
    flagged = dict(findings(found))["edge"]
    assert "thinner" in flagged and "plain" not in flagged


@pytest.mark.parametrize(
    ("names", "changed", "kept"),
    [
        (["only"], {}, 99),
        (["only"], {"seeds": 1, "lr": []}, 99),
        (["plain", "thin"], {"budget": "flops", "seeds": 1}, 99),
        (["plain", "thin"], {"budget": "seconds", "drop": 0.01}, 2),
        (NAMES, {}, 0),
        ([f"{'a-long-name-' * (i % 4)}{i}" for i in range(15)], {"seeds": 2}, 99),
    ],
)
def test_a_report_is_made_of_any_comparison(tmp_path, names, changed, kept):
    its_plan = plan(names, **changed)
    lines = finished(its_plan)[:kept]
    write_report(tmp_path, its_plan, lines)
    first = [(tmp_path / f"report.{kind}").read_bytes() for kind in ("json", "md", "html")]
    write_report(tmp_path, its_plan, lines[::-1])  # members have no order
    assert first == [(tmp_path / f"report.{kind}").read_bytes() for kind in ("json", "md", "html")]
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [
        "report.html", "report.json", "report.md"
    ]  # fmt: skip


def test_equal_flops_are_said_only_as_far_as_they_are():
    its_plan = plan(["plain", "thin"], budget="flops")
    lines = finished(its_plan)
    for of in lines:
        of["flops"] = 1e13 * (1.007 if of["arm"] == "thin" else 1)
    assert "FLOPs of whole runs differ by 0.7 % at most." in " ".join(
        design(summary(its_plan, lines))
    )


def test_labels_keep_apart_in_their_order_and_stay_inside():
    wanted = [100.0, 101.0, 300.0, 99.0, 395.0, 398.0]
    places = svg.apart(wanted, 40, 400, gap=15)
    order = sorted(range(6), key=lambda i: wanted[i])
    gaps = [places[b] - places[a] for a, b in pairwise(order)]
    assert min(gaps) >= 15 - 1e-9 and min(places) >= 40 and max(places) <= 400
    assert places[2] == 300.0 and places[0] == 100.0


@pytest.mark.parametrize(
    ("scale", "most", "ticks"),
    [
        (svg.Scale(0, 2.1e6, 0, 1), 5, [0, 5e5, 1e6, 1.5e6, 2e6]),
        (svg.Scale(44, 61, 0, 1, log=True), 4, [45, 50, 55, 60]),
        (svg.Scale(0.0009, 0.11, 0, 1, log=True), 6, [0.001, 0.003, 0.01, 0.03, 0.1]),
    ],
)
def test_ticks_are_round_numbers_inside(scale, most, ticks):
    assert scale.ticks(most) == pytest.approx(ticks)
