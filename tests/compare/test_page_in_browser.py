"""A comparison's page in a headless Chromium: silent, sorted by a click, no label upon another."""

import pytest
from browser import CHROMIUM, Browser
from sample_ledger import NAMES, failed, finished, plan

from cola_train.compare.report import write_report

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium: tests/install_chromium.sh installs it"
)

WHY = "out of memory <img src=x onerror=\"console.error('run')\">"
ARMS = (
    "[...document.querySelectorAll('table.sorts tbody')[0].rows].map((r) => r.cells[0].innerText)"
)
CLICK = "document.querySelectorAll('table.sorts thead')[0].rows[0].cells[%d].firstChild.click()"
SHOWN = "[...document.querySelectorAll('.switch figure')].map((f) => f.checkVisibility())"
# Of each picture that is shown: its texts that lie upon another, or beyond its edge.
COLLISIONS = """
[...document.querySelectorAll('figure svg')].filter((svg) => svg.checkVisibility()).map((svg) => {
  const edge = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')];
  const boxes = texts.map((text) => text.getBoundingClientRect());
  const found = [];
  boxes.forEach((a, i) => {
    if (a.left < edge.left - 1 || a.right > edge.right + 1) found.push(texts[i].textContent);
    boxes.slice(i + 1).forEach((b, k) => {
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // lines of text may touch: their boxes are higher than their letters
      if (x > 1 && y > 4) found.push(`${texts[i].textContent} / ${texts[i + 1 + k].textContent}`);
    });
  });
  return [svg.getAttribute('aria-label'), texts.length, found];
})
"""


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    assert browser.said == []
    browser.close()


def test_a_click_sorts_and_the_pictures_switch(browser, tmp_path):
    its_plan = plan()
    lines = finished(its_plan)
    lines = [failed(of, WHY) if of["member"] == "muon+seed-1" else of for of in lines]
    lines = [of for of in lines if (of["arm"], of["phase"]) != ("wild", "final")]
    write_report(tmp_path, its_plan, lines)
    address = (tmp_path / "report.html").as_uri()
    browser.asked.clear()
    browser.open(address)
    assert [url for url in browser.asked if not url.startswith("data:")] == [address]
    assert browser.value("document.documentElement.scrollWidth") == 1200  # nothing sticks out
    assert WHY in browser.value("document.body.innerText")
    best_first = ["thin", "plain", "thinner", NAMES[3], "muon", "wild"]
    assert browser.value(ARMS) == best_first
    browser.value(CLICK % 1)  # perplexity, upwards; what has none stays last
    assert browser.value(ARMS) == best_first
    browser.value(CLICK % 1)
    assert browser.value(ARMS) == [*best_first[-2::-1], "wild"]
    browser.value(CLICK % 0)
    assert browser.value(ARMS) == NAMES
    assert browser.value(SHOWN) == [True, False, False]
    browser.value("document.querySelector('#over-seconds').click()")
    assert browser.value(SHOWN) == [False, False, True]


@pytest.mark.parametrize("arms", [1, 6, 15])
def test_no_label_lies_upon_another(browser, tmp_path, arms):
    its_plan = plan([f"{'long-name-' * (i % 3)}{i}" for i in range(arms)])
    write_report(tmp_path, its_plan, finished(its_plan))
    browser.open((tmp_path / "report.html").as_uri(), dark=arms == 6)
    for over in ("tokens", "flops", "seconds"):
        browser.value(f"document.querySelector('#over-{over}').click()")
        found = browser.value(COLLISIONS)
        assert len(found) == 4 and all(texts > arms for _, texts, _ in found)
        assert [each for each in found if each[2]] == []
