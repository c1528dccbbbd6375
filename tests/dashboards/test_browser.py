"""The page in a headless Chromium: nothing on the console, every curve drawn, usable when large."""

import http.client
import json
import os
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM, Browser
from sample_runs import TOKENS, write_run, write_samples

from cola_train.dashboards.folders import found_runs
from cola_train.dashboards.page import Page
from cola_train.dashboards.server import Server

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: tests/install_chromium.sh installs it"
)

# Of each plot: its title, and its curves of whose colour its canvas has no pixel.
NOT_DRAWN = """
GROUPS.flatMap((group) => group.plots).map((plot) => {
  const { width, height } = plot.canvas;
  const copy = Object.assign(document.createElement('canvas'), { width, height });
  const pen = copy.getContext('2d', { willReadFrequently: true });
  pen.drawImage(plot.canvas, 0, 0);
  const { data } = pen.getImageData(0, 0, width, height);
  const there = new Set();
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] > 60) there.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
  }
  const near = (colour) => {
    const probe = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
    const one = probe.getContext('2d', { willReadFrequently: true });
    one.fillStyle = colour;
    one.fillRect(0, 0, 1, 1);
    const [r, g, b] = one.getImageData(0, 0, 1, 1).data;
    return [...there].some((c) =>
      Math.abs((c >> 16) - r) + Math.abs(((c >> 8) & 255) - g) + Math.abs((c & 255) - b) < 60);
  };
  const missing = plot.curves.filter((curve) => !near(curve.colour)).map((curve) => curve.name);
  return [plot.canvas.getAttribute('aria-label'), plot.curves.length, missing];
})
"""
MAPS = "document.querySelectorAll('canvas.heat').length"
RANGE = "TRAINING.range || TRAINING.whole()"
BOX = "(() => { const b = TRAINING.plots[0].canvas.getBoundingClientRect(); return [b.x, b.y] })()"


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def silence(browser):
    """Whatever a test does, the page has nothing to complain of."""
    browser.said.clear()
    browser.asked.clear()
    yield
    assert browser.said == []


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of four runs, with health and spectra."""
    folder = tmp_path_factory.mktemp("runs")
    write_samples(folder)
    path = folder / "page.html"
    made = Page(found_runs([str(folder)]), 10000, None, served=False)
    path.write_text(made.html(made.data()))
    return path.as_uri()


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_every_plot_is_drawn_and_nothing_is_asked_of_a_network(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    plots = browser.value(NOT_DRAWN)
    assert [each for each in plots if each[1] == 0 or each[2]] == []
    titles = [title for title, *_ in plots]
    assert {"learning rate", "MFU", "gradient norm", "validation loss, wiki", "down"} <= set(titles)
    assert len(titles) == 10 + 7 and browser.value(MAPS) == 7
    assert browser.asked == [page]
    assert browser.value("document.documentElement.scrollWidth") == width  # nothing sticks out
    light = browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert light != dark


def test_states_and_settings_are_said(browser, page):
    browser.open(page)
    text = browser.value("document.querySelector('main').innerText")
    pills = browser.value("[...document.querySelectorAll('.pill')].map((each) => each.textContent)")
    assert pills == ["running", "done", "failed", "lost"]
    assert "training diverged: 10 steps" in text and "is gone without a word" in text
    assert "step 1350: health: z_rank of down in block 5 is 2" in text
    left = browser.value("document.querySelector('[data-label=left]').textContent")
    assert left == "8 min"  # 1400 steps of a third of a second
    assert "method.name\tcola\tfull\tcola\tcola" in text and "optim.lr" in text


def test_a_mouse_zooms_pans_and_goes_back(browser, page):
    browser.open(page)
    whole = browser.value(RANGE)
    assert whole == [TOKENS, 4000 * TOKENS]
    x, y = browser.value(BOX)
    browser.drag((x + 200, y + 60), (x + 500, y + 80))
    zoomed = browser.value(RANGE)
    assert whole[0] < zoomed[0] < zoomed[1] < whole[1]
    browser.drag((x + 500, y + 60), (x + 400, y + 60), modifiers=8)  # Shift: to later tokens
    panned = browser.value(RANGE)
    assert panned[0] > zoomed[0]
    assert panned[1] - panned[0] == pytest.approx(zoomed[1] - zoomed[0], rel=1e-6)
    browser.mouse("mouseWheel", x + 300, y + 60, deltaX=0, deltaY=-100, modifiers=2)
    assert browser.value(f"({RANGE})[1] - ({RANGE})[0]") < panned[1] - panned[0]
    assert browser.value("document.querySelector('.readout').textContent").startswith("tokens ")
    for clicks in (1, 2):
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, x + 300, y + 60, button="left", clickCount=clicks)
    assert browser.value(RANGE) == whole


def test_axes_smoothing_and_hidden_runs(browser, page):
    browser.open(page)
    choose = "for (const s of document.querySelectorAll('select')) if (s.value === 'tokens')"
    change = "{ s.value = %r; s.dispatchEvent(new Event('change')); }; 1"
    browser.value(f"{choose} {change % 'flops'}")
    flops = browser.value("DATA.now.runs[1].flops_per_token")
    assert browser.value(RANGE)[1] == pytest.approx(4000 * TOKENS * flops)
    log = "const box = document.querySelector('.log input'); box.click(); TRAINING.plots[0].draw()"
    browser.value(f"(() => {{ {log} }})()")
    assert browser.value("TRAINING.plots[0].y.log") is True
    # each run's lines, faint, their smoothed course, and validation
    curves = "TRAINING.plots[0].curves.map((c) => [c.name, Boolean(c.faint), Boolean(c.dots)])"
    assert len(browser.value(curves)) == 3 * 4
    browser.value("CHOSEN.smoothing = 0; curvesChanged()")
    browser.value("document.querySelector('.runs input').click()")
    names = {name for name, *_ in browser.value(curves)}
    assert len(browser.value(curves)) == 2 * 3 and not any("cola-60m" in name for name in names)
    assert [each for each in browser.value(NOT_DRAWN) if each[2]] == []
    for axis in ("seconds", "step"):
        browser.value(f"CHOSEN.axis = '{axis}'; TRAINING.range = null; curvesChanged()")
        assert [each for each in browser.value(NOT_DRAWN) if each[2]] == []


def test_what_a_runs_folder_says_is_text(browser, tmp_path):
    evil = "</script><script>console.log('in')</script><img src=x onerror=console.log(1)>"
    write_run(tmp_path / "<b>run", 5, "failed", message=evil)
    made = Page([tmp_path / "<b>run"], 100, None, served=False)
    (tmp_path / "page.html").write_text(made.html(made.data()))
    browser.open((tmp_path / "page.html").as_uri())
    assert evil in browser.value("document.querySelector('.state').textContent")
    assert browser.value("document.querySelectorAll('main b, main img').length") == 0


def test_a_run_that_has_only_begun_has_no_plot_yet(browser, tmp_path):
    write_run(tmp_path / "run", 5, "running")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    made = Page([tmp_path / "run"], 100, None, served=False)
    (tmp_path / "page.html").write_text(made.html(made.data()))
    browser.open((tmp_path / "page.html").as_uri())
    assert "no step yet" in browser.value("document.querySelector('.state').textContent")
    assert browser.value("TRAINING.plots.length") == 0


def test_a_served_page_follows_its_run(browser, tmp_path):
    run = tmp_path / "run"
    write_run(run, 20, "running", last_step=40)
    server = Server(Page([run], 1000, 0.2, served=True), 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        browser.open(server.url)
        assert browser.value("TRAINING.plots[0].curves[0].x.length") == 20
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 21, "tokens": 21 * TOKENS, "loss": 3.0, "lr": 0}) + "\n")
        status = json.loads((run / "status.json").read_text())
        (run / "status.json").write_text(json.dumps(status | {"state": "done", "exit_code": 0}))
        state = "document.querySelector('.pill').textContent"
        deadline = time.monotonic() + 30
        while browser.value(state) != "done" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert browser.value("TRAINING.plots[0].curves[0].x.length") == 21
        browser.close_tab()  # it asks no more
        tag = answer(server, "/data.json")[1]
        assert answer(server, "/data.json", **{"If-None-Match": tag})[0] == 304
        assert answer(server, "/../../etc/passwd")[0] == 404
        assert answer(server, "/", Host="other.example")[0] == 403
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").mkdir()
        assert answer(server, "/")[0] == 503  # said, and it goes on
    finally:
        server.shutdown()
        server.server_close()


def test_a_page_in_a_file_loads_itself_again_as_it_was_left(browser, tmp_path):
    write_run(tmp_path / "run", 20, "running", last_step=40)
    # seconds enough to choose before a busy machine's page is loaded again
    page, path = Page([tmp_path / "run"], 1000, 3, served=False), tmp_path / "page.html"
    path.write_text(page.html(page.data()))
    browser.open(path.as_uri())
    browser.value("CHOSEN.axis = 'step'; curvesChanged(); TRAINING.show(0.5, 1)")
    shown = browser.value("TRAINING.range")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, "tokens": 21 * TOKENS, "loss": 3.0}) + "\n")
    (tmp_path / "new").write_text(page.html(page.data()))
    (tmp_path / "new").replace(path)
    rows = "document.readyState === 'complete' && DATA.now.runs[0].training.rows"
    deadline = time.monotonic() + 30
    while browser.value(rows) != 21 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert browser.value("[CHOSEN.axis, TRAINING.range]") == ["step", shown]
    browser.close_tab()


def answer(server: Server, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.headers.get("ETag", "")


def cpu_seconds(process: int) -> float:
    """Of a process and those below it."""
    parents, spent = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
        spent[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    total, below = 0, {process}
    for _ in range(5):
        below |= {each for each, parent in parents.items() if parent in below}
    total = sum(spent.get(each, 0) for each in below)
    return total / os.sysconf("SC_CLK_TCK")


PAN = """
new Promise((done) => {
  let frames = 0;
  TRAINING.show(0.2, 0.7);
  const next = () => {
    TRAINING.show(0.01, 1.01);
    frames += 1;
    if (frames < 30) requestAnimationFrame(next);
    else done(TRAINING.plots[0].shown.map((columns) => columns.length));
  };
  requestAnimationFrame(next);
})
"""


# Of the gradient norms of a run, which have spikes of one step.
SPIKE = """
(() => {
  const plot = TRAINING.plots.find((each) => each.figureName === 'grad_norm');
  const shown = Math.max(...plot.shown[0].map((column) => column.high));
  return shown > 40 && shown === plot.curves[0].high.reduce((a, b) => Math.max(a, b));
})()
"""


@pytest.mark.slow
def test_five_runs_of_100_thousand_lines_open_and_pan(browser, tmp_path):
    """By CPU time, which other processes on the machine do not change: the drawing is Chromium's
    own on the CPU here, and an idle browser's is a GPU's."""
    write_run(tmp_path / "0", 100_000)
    for i in range(1, 5):
        (tmp_path / str(i)).mkdir()
        for name in ("metrics.jsonl", "config.yaml", "status.json", "attempt.json"):
            (tmp_path / str(i) / name).symlink_to(tmp_path / "0" / name)
    made = Page(found_runs([str(tmp_path)]), 10000, None, served=False)
    path = tmp_path / "page.html"
    path.write_text(made.html(made.data()))
    assert path.stat().st_size < 12e6
    began = cpu_seconds(browser.process.pid)
    browser.open(path.as_uri())
    opened = cpu_seconds(browser.process.pid)
    assert browser.value("DATA.now.runs.map((run) => run.training.rows)") == [100_000] * 5
    columns = browser.value(PAN)
    panned = cpu_seconds(browser.process.pid)
    width = browser.value("TRAINING.plots[0].area.width")
    assert all(0 < count <= width + 3 for count in columns)
    browser.value("TRAINING.range = null; TRAINING.plots.map((plot) => plot.draw()).length")
    assert browser.value(SPIKE)
    spent = f"opening {opened - began:.2f} s, a frame {1000 * (panned - opened) / 30:.0f} ms of CPU"
    print(f"{path.stat().st_size / 1e6:.1f} MB, {spent}")
    assert opened - began < 4 and (panned - opened) / 30 < 0.15
