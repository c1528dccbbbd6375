"""docs/img/dashboard_*.png: the page of the runs that sample_runs.py makes up.

PYTHONPATH=tests python tests/dashboards/screenshots.py
"""

import tempfile
from pathlib import Path

from browser import Browser
from PIL import Image
from sample_runs import write_samples

from cola_train.dashboards.folders import found_runs
from cola_train.dashboards.page import Page

IMAGES = Path(__file__).parents[2] / "docs" / "img"
COLOURS = 256  # of a palette: an image is a third as large, and looks the same

# name: width, height, dark, and the section that is at the top
SHOTS = {
    "light": (1200, 1120, False, "header"),
    "dark": (1200, 1000, True, "#health"),
    "narrow": (390, 844, False, "header"),
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = write_samples(Path(folder))
        page = Page(found_runs([str(run) for run in runs]), 10000, None, served=False)
        path = Path(folder) / "page.html"
        path.write_text(page.html(page.data()))
        browser = Browser()
        try:
            for name, (width, height, dark, top) in SHOTS.items():
                browser.open(path.as_uri(), width, height, dark)
                browser.value(f"document.querySelector('{top}').scrollIntoView()")
                # when what came into sight is drawn
                browser.value("new Promise((done) => setTimeout(done, 500))")
                image = IMAGES / f"dashboard_{name}.png"
                browser.screenshot(image)
                Image.open(image).convert("RGB").quantize(COLOURS).save(image, optimize=True)
                print(image.name, image.stat().st_size)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
