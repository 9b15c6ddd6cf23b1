"""Reports and the board in a real browser: plots are drawn, hovering and clicking work, the console is silent, and no
request leaves the machine. Skips itself without a browser; `make browser` installs one.

With SKIPSWEEP_PICTURES=FOLDER what was seen is kept there, to be looked at.
"""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PROGRAM, REQUIRED, Browser, Page, browsing
from sweep_folders import Made

from skipsweep.analyze import report
from skipsweep.board.server import Server

ORDERINGS = ("late_to_early", "early_to_late", "random")
DRAWN = """[...document.querySelectorAll('figure')].every(
    (figure) => figure.querySelector('svg.marks [class*="mark-"] path, svg.marks [class*="mark-"] line'))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        told = "no browser (chromium is not installed); `make browser` installs it"
        pytest.fail(told) if os.environ.get(REQUIRED) else pytest.skip(told)
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A sweep for which every figure has something to show."""
    made = Made(tmp_path_factory.mktemp("browser") / "multirun", baseline="none", target=2.925)
    made.arm("none", [2.930, 2.932])
    for layer in (2, 5):
        weights = {f"lambda/skip/{layer}": -0.2, "lambda/block/0/x00": 0.1, "lambda/block/1/x00": 0.2, "gate/1": 0.6}
        made.arm(f"add{layer}", [2.92 + layer / 1000, 2.921], sources=[layer], lambdas=weights)
    made.arm("concat5", [2.915, 2.916], sources=[5], recipe={"head_type.name": "concat", "model.layers": 9})
    for method in ORDERINGS:
        for n in (2, 3):
            tags, layers = [f"multi_layer/{method}/N={n}"], list(range(n))
            made.arm(f"{method}{n}", [2.91 + n / 900, 2.914], sources=layers, tags=tags, lambdas={"lambda/skip/0": 0.1})
    made.arm("open", [None], sources=[1], state="planned")
    made.write()
    return made


def look(page: Page, name: str) -> None:
    """Keep a picture for who asked for one."""
    if folder := os.environ.get("SKIPSWEEP_PICTURES"):
        page.picture(Path(folder) / f"{name}.png")


def assert_quiet(page: Page, home: str) -> None:
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith((home, "data:", "blob:"))] == []
    assert any(url.startswith(home) for url in page.requests), "control: requests are written down"


def test_a_report_opens_from_disk(browser: Browser, made: Made) -> None:
    written = report.make(made.multirun, [made.name])
    page = browser.page()
    page.open(written.page.as_uri())
    page.until(DRAWN)
    figures = page.evaluate("document.querySelectorAll('figure').length")
    assert figures == len(list((written.page.parent / "figures").glob("*.svg"))) >= 12

    mark = "#loss-per-arm svg.marks .mark-symbol.role-mark path"
    page.hover(mark)
    page.until("document.querySelector('#vg-tooltip-element.visible')")
    told = page.evaluate("document.querySelector('#vg-tooltip-element').textContent")
    assert "question-none-s0" in told
    assert "2.93000" in told
    for kind in ("mousePressed", "mouseReleased"):
        page.hover(mark, kind)
    page.until("!document.querySelector('#said').hidden")
    assert "python launch.py" in page.evaluate("document.querySelector('#said').textContent")

    rings = "document.querySelectorAll('#skip-lambdas svg.marks .mark-symbol.role-mark path').length"
    everything = page.evaluate(rings)
    page.evaluate("""{
        const choice = document.querySelector('#skip-lambdas select');
        choice.selectedIndex = [...choice.options].findIndex((option) => option.textContent === 'random');
        choice.dispatchEvent(new Event('input', { bubbles: true }));
        choice.dispatchEvent(new Event('change', { bubbles: true }));
    }""")
    page.until(f"{rings} !== {everything}")
    assert page.evaluate(rings) == 4, "two runs of two arms"
    assert_quiet(page, written.page.as_uri())
    look(page, "report")


def test_the_board_leads_to_reports_that_renew_themselves(browser: Browser, made: Made) -> None:
    built = []

    def make(name: str) -> None:
        report.make(made.multirun, [name])
        built.append(name)

    server = Server(made.multirun, 0, make, rest=0.0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        page = browser.page()
        page.open(server.address)
        page.until("document.querySelector('main table a')")
        look(page, "board")
        page.evaluate("document.querySelector('main table a').click()")
        page.until(DRAWN + " && document.querySelector('figure')")
        page.evaluate("window.before = true")
        made.multirun.run(made.points[-1]["run"]).write_status("failed", cause="oom", message="?")
        page.until("document.querySelector('figure') && !window.before")
        page.until(DRAWN)
        assert "1 failed" in page.evaluate("document.body.textContent")
        assert_quiet(page, server.address)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert built
