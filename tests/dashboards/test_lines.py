"""Lines of metrics to the columns of the page, against numpy on the whole."""

import base64
import json
import math

import numpy as np
import pytest
from helpers import run_python
from sample_runs import LAYERS, add_health, add_spectra, write_run

from cola_train.dashboards.folders import found_runs
from cola_train.dashboards.health import health_maps, spectra
from cola_train.dashboards.lines import Lines, bucketed, events, measured
from cola_train.dashboards.page import Page
from cola_train.dashboards.run_view import differing, flat
from cola_train.errors import UserError


def unpacked(packed):
    ((kind, text),) = packed.items()
    return np.frombuffer(base64.b64decode(text), f"<{kind}")


def training(n: int, **figures):
    return [
        {"step": 2 * i + 2, "tokens": 20 * i + 20, "step_seconds": 0.5}
        | {name: values[i] for name, values in figures.items()}
        for i in range(n)
    ]


def test_a_bucket_keeps_mean_and_extremes_and_loses_no_line():
    draw = np.random.default_rng(0)
    loss = draw.normal(3, 1, 1003)
    loss[500] = 77.0
    values = [None if i % 10 == 3 else float(v) for i, v in enumerate(loss)]
    lines = Lines()
    lines.add(training(600, loss=values[:600]))
    lines.add(training(1003, loss=values)[600:])  # as they come
    shown = bucketed(lines.columns(), 100)
    assert (shown["rows"], shown["size"]) == (1003, 11)
    parts = [[v for v in values[i : i + 11] if v is not None] for i in range(0, 1003, 11)]
    figure = {name: unpacked(each) for name, each in shown["figures"]["loss"].items()}
    for name, of in (("mean", np.mean), ("min", min), ("max", max)):
        assert figure[name] == pytest.approx([of(part) for part in parts], rel=1e-6)
    assert figure["max"].max() == 77.0 and len(figure["max"]) == 92 <= 100
    steps, seconds = (unpacked(shown["axes"][name]) for name in ("step", "seconds"))
    assert steps[0] == 22 and steps[-1] == 2006
    assert seconds == pytest.approx(steps * 0.5)  # two steps from line to line, of half a second


def test_few_lines_stay_as_they_are_and_new_figures_begin_late():
    lines = Lines()
    lines.add([{"step": 1, "tokens": 8, "loss": 4.0}, {"step": 2, "tokens": 16, "moved": 1.5}])
    shown = bucketed(lines.columns(), 100)
    assert set(shown["figures"]["loss"]) == {"mean"} and shown["size"] == 1
    loss, moved = (unpacked(shown["figures"][name]["mean"]) for name in ("loss", "moved"))
    assert loss[0] == 4.0 and moved[1] == 1.5 and np.isnan([loss[1], moved[0]]).all()


def test_validation_lines_and_events_stand_at_their_tokens():
    lines = Lines()
    rows = training(4, skipped=[0, 1, 1, 3])
    rows[2]["attempt"] = 2
    lines.add([*rows, {"step": 4, "val_loss": 3.0}, {"step": 8, "task/arc/acc": 0.5}])
    columns = lines.columns()
    found = measured(lines.validation, columns)
    assert unpacked(found["val_loss"]["axes"]["tokens"]).tolist() == [40.0]
    assert unpacked(found["task/arc/acc"]["axes"]["step"]).tolist() == [8.0]
    assert events(columns)["skipped"]["step"] == [4.0, 8.0]
    assert events(columns)["attempt"]["tokens"] == [60.0]


def test_health_is_layer_by_layer_and_says_what_is_not_known():
    lines = [
        {"step": s, "health": {"z_rank": {"q": [s, None]}, "rms": [1.0, 2.0 * s]}}
        for s in range(1, 321)
    ]
    maps = health_maps(lines, {})
    assert (maps["layers"], maps["columns"], maps["size"]) == (2, 160, 2)
    ranks = unpacked(maps["figures"]["z_rank"]["q"]).reshape(2, 160)
    assert maps["warnings"] == []
    assert ranks[0].tolist() == [s + 0.5 for s in range(1, 320, 2)] and np.isnan(ranks[1]).all()
    assert unpacked(maps["figures"]["rms"]["block"]).reshape(2, 160)[1, 0] == 3.0
    assert health_maps([{"step": 1, "health": "?"}], {}) is None and health_maps([], {}) is None


def test_spectra_keep_their_ends_and_the_rank(tmp_path):
    write_run(tmp_path / "run", 3)
    add_spectra(tmp_path / "run")
    linears = spectra(tmp_path / "run")["linears"]
    assert len(linears) == 7 * LAYERS
    down = next(each for each in linears if each["projection"] == "down")["input"]
    at, values = unpacked(down["at"]), unpacked(down["values"])
    assert at[0] == 0 and at[-1] == down["width"] - 1 == 1375 and len(at) == len(values) <= 128
    assert (np.diff(at) > 0).all() and values[0] == pytest.approx(1.0, rel=1e-3)


def test_settings_that_differ(tmp_path):
    one = flat({"run_name": "a", "optim": {"lr": 1e-3, "groups": {}}, "seed": 0, "kernels": None})
    two = flat({"run_name": "b", "optim": {"lr": 3e-3, "groups": {}}, "seed": 0, "kernels": None})
    two["method.rank"] = 8
    assert differing([one, {}, two]) == {
        "rows": [["optim.lr", "0.001", "", "0.003"], ["method.rank", "", "", "8"]],
        "same": 3,
    }


def test_what_is_damaged_or_not_there_is_said_beside_the_run(tmp_path):
    """And the rest of the page is made."""
    write_run(tmp_path / "a" / "run", 5)
    write_run(tmp_path / "b", 5)
    add_health(tmp_path / "b", 5, 2, None)
    (tmp_path / "a" / "run" / "config.yaml").write_text("model: [")
    (tmp_path / "b" / "spectra").mkdir()
    (tmp_path / "b" / "spectra" / "spectra.json").write_text('{"linears": 3}')
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tok')
    page = Page(found_runs([str(tmp_path / "a"), str(tmp_path / "b")]), 100, None, served=False)
    first, second = page.data()["runs"]
    assert "config.yaml: damaged" in first["problems"][0] and first["flops_per_token"] is None
    assert second["flops_per_token"] > 1e6 and "no spectra in the form" in second["problems"][0]
    assert second["training"]["rows"] == 5 and second["health"]["columns"] == 2
    assert "NaN" not in page.html(page.data()).partition('json">')[2].partition("</script>")[0]
    with pytest.raises(UserError, match="no run, nor a folder of runs"):
        found_runs([str(tmp_path / "b" / "spectra")])


def test_a_run_that_went_back_is_read_anew(tmp_path):
    run = tmp_path / "run"
    write_run(run, 50)
    page = Page([run], 100, None, served=False)
    assert page.data()["runs"][0]["training"]["rows"] == 50
    kept = (run / "metrics.jsonl").read_text().splitlines()[:20]
    (run / "new").write_text("\n".join(kept) + "\n")
    (run / "new").replace(run / "metrics.jsonl")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99, "tokens": 10**9, "loss": math.pi}) + "\n")
    view = page.data()["runs"][0]
    rows = sum("tokens" in json.loads(line) for line in kept) + 1
    assert view["training"]["rows"] == rows and view["summary"]["tokens"] == 10**9


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["run_dir=/no/such"], "run_dir: /no/such: no such folder"),
        (["run_dir=[]"], "run_dir: the list is empty"),
        (["run_dir={run}", "port=1"], "port: of serve=true"),
        (["run_dir={run}", "serve=true", "out=x.html"], "out: of a page in a file"),
        (["run_dir={run}", "out={run}/config.yaml/x.html"], "out: cannot write"),
        ([], "run_dir: missing"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, words, problem):
    from cola_train.commands import dashboard

    write_run(tmp_path / "run", 3)
    words = [word.format(run=tmp_path / "run") for word in words]
    monkeypatch.setattr("sys.argv", ["cola-dashboard", *words])
    with pytest.raises(SystemExit) as ended:
        dashboard.run_own(dashboard.run, dashboard.DashboardOptions, "cola-dashboard")
    assert ended.value.code == 2 and problem in capsys.readouterr().err


def test_the_command_writes_one_whole_file(tmp_path):
    write_run(tmp_path / "run", 3)
    out = tmp_path / "made" / "page.html"
    words = [f"run_dir={tmp_path / 'run'}", f"out={out}", "refresh=1"]  # done: one look is enough
    command = "import sys\nfrom cola_train.commands.dashboard import main\n"
    command += "try: main()\nfinally: assert 'torch' not in sys.modules"
    ran = run_python("-c", command, *words)
    assert ran.stdout.strip() == str(out) and out.read_text().endswith("</html>\n")
    assert '"refresh":null' in out.read_text() and list(out.parent.iterdir()) == [out]
