"""A real browser, spoken to over its DevTools protocol: Chromium without a window, and without anything beside Python.

The protocol goes over two pipes, messages end with a zero byte; what a page loads, logs and throws is written down.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REQUIRED = "SKIPSWEEP_NEEDS_BROWSER"
"""Set by `make browser`: then it is a failure that there is none."""
PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless=new", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--mute-audio",
    "--password-store=basic", "--force-color-profile=srgb", "--remote-debugging-pipe",
)  # fmt: skip
DEADLINE_S = 90


class Navigated(Exception):
    """The page that was asked has made way for another."""


@dataclass
class Page:
    """One tab."""

    browser: "Browser"
    session: str
    requests: list[str] = field(default_factory=list)
    """Addresses of all that the page asked for."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, and exceptions nobody caught."""

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **parameters)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; a promise's when it is kept."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for a condition, also while the page loads anew."""
        look = f"""new Promise((tell) => {{
            const end = Date.now() + 1000;
            const look = () => {{
                try {{ if ({condition}) return tell(true) }} catch {{}}
                Date.now() > end ? tell(false) : setTimeout(look, 30);
            }};
            look();
        }})"""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with suppress(Navigated):
                if self.evaluate(look):
                    return
            assert time.monotonic() < deadline, f"in vain: {condition}"

    def hover(self, selector: str, kind: str = "mouseMoved") -> None:
        """Move the mouse to the middle of an element; `kind` of event: see DevTools' Input.dispatchMouseEvent."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        where = f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())"
        box = json.loads(self.evaluate(where))
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def note(self, message: dict[str, Any]) -> None:
        """Write down what an event says."""
        what = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(what["request"]["url"])
            case "Runtime.consoleAPICalled" if what["type"] in ("error", "warning", "assert"):
                self.complaints.append(str([one.get("value", one.get("description")) for one in what["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(what["exceptionDetails"].get("exception", what)))
            case "Log.entryAdded" if what["entry"]["level"] in ("error", "warning"):
                self.complaints.append(what["entry"]["text"])


class Browser:
    """A browser of one's own, with a profile that is thrown away."""

    def __init__(self, profile: Path):
        assert PROGRAM is not None
        theirs, self._commands = os.pipe()
        self._answers, ours = os.pipe()
        # It reads from 3 and writes to 4.
        script = f'exec "$@" 3<&{theirs} 4>&{ours}'
        command = ["bash", "-c", script, "bash", PROGRAM, *QUIET, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(profile)},
        )  # fmt: skip
        os.close(theirs)
        os.close(ours)
        self._rest, self._number = b"", 0
        self._pages: dict[str, Page] = {}

    def page(self, width: int = 1100, height: int = 900) -> Page:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.send(f"{domain}.enable")
        page.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        return page

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Send a command, take in what is told meanwhile, and return its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._commands, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                problem = str(answer.get("error", ""))
                if "navigated" in problem or "context was destroyed" in problem:
                    raise Navigated
                assert not problem, f"{method}: {problem}"
                return answer["result"]
            if "method" in answer and answer.get("sessionId") in self._pages:
                self._pages[answer["sessionId"]].note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            got = os.read(self._answers, 1 << 20)
            assert got, "the browser has ended"
            self._rest += got
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def close(self) -> None:
        os.close(self._commands)  # it ends by itself then
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
