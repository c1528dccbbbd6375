"""A headless Chromium, driven through its own DevTools protocol over a pipe: nothing to install
beside the browser, and no port that another test might take.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import contextlib
import json
import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run "
    "--disable-component-update --hide-scrollbars --disable-dev-shm-usage --mute-audio "
    "--remote-debugging-pipe"
)
SECONDS = 60.0  # that any answer may take


class Browser:
    """One page at a time. `said`: what the console, exceptions and failed requests said so far;
    `asked`: the addresses that the page asked for."""

    def __init__(self) -> None:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        assert CHROMIUM is not None
        its_in, our_out = os.pipe()
        our_in, its_out = os.pipe()
        flags = f"{FLAGS} --user-data-dir={shlex.quote(self.profile.name)}"
        # the browser reads descriptor 3 and writes 4
        command = f"exec 3<&{its_in} 4>&{its_out}; exec {shlex.quote(CHROMIUM)} {flags}"
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(its_in, its_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in)
        os.close(its_out)
        self.input, self.output = our_in, our_out
        self.rest = b""
        self.number = 0
        self.session: str | None = None
        self.said: list[str] = []
        self.asked: list[str] = []
        self.events: list[str] = []
        self.tab: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer of a DevTools method."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.output, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            self._note(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _message(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.input], [], [], deadline - time.monotonic())
            assert ready, "the browser does not answer"
            part = os.read(self.input, 1 << 20)
            assert part, "the browser has ended"
            self.rest += part
        first, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(first))

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method", ""), event.get("params", {})
        self.events.append(method)
        if method == "Runtime.consoleAPICalled":
            words = [str(each.get("value", each.get("description"))) for each in values["args"]]
            self.said.append(" ".join([values["type"], *words]))
        elif method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.said.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded":
            self.said.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"])

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Load a page, whole, in a tab of its own, which knows nothing of another's storage."""
        self.close_tab()
        self.tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=self.tab, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=url)
        while "Page.loadEventFired" not in self.events:
            self._note(self._message())

    def close_tab(self) -> None:
        self.session = None
        if self.tab is not None:
            self.call("Target.closeTarget", targetId=self.tab)
            self.tab = None

    def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to, as JSON; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """kind: mousePressed, mouseMoved, mouseReleased or mouseWheel; in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def drag(
        self, start: tuple[float, float], end: tuple[float, float], modifiers: int = 0
    ) -> None:
        """With the left button, in a few steps. modifiers: 2 for Ctrl, 8 for Shift."""
        left = {"button": "left", "clickCount": 1, "modifiers": modifiers}
        steps = 6
        self.mouse("mouseMoved", *start, modifiers=modifiers)
        self.mouse("mousePressed", *start, **left)
        for i in range(1, steps + 1):
            share = i / steps
            at = [a + (b - a) * share for a, b in zip(start, end, strict=True)]
            self.mouse("mouseMoved", *at, button="left", buttons=1, modifiers=modifiers)
        self.mouse("mouseReleased", *end, **left)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """As PNG; whole: of the page rather than of the window."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.session = None
            self.call("Browser.close")
        self.process.kill()
        self.process.wait()
        os.close(self.input)
        os.close(self.output)
        self.profile.cleanup()
