"""Every command of docs/slurm.md, as it stands there, on the private cluster."""

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from commands import CHECKOUT
from sweeps import SlurmPlace, stand_in

NOT_HERE = {"make demo": "sets up an environment, which CI has just done", ". .venv/bin/activate": "the shell's own"}


def commands(text: str) -> Iterator[str]:
    """Lines of the document's blocks, without their comments."""
    for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from filter(None, (line.partition(" #")[0].strip() for line in block.splitlines()))


@pytest.fixture
def playground() -> Iterator[Path]:
    """Where the reader's own cluster will be; gone afterwards, whatever happened."""
    with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as root:
        yield Path(root)
        Cluster(Path(root)).down()


def test_every_command_works(place: SlurmPlace, tmp_path: Path, playground: Path) -> None:
    """Jobs are played, everything else is real."""
    environment, done = place.environment, []
    launcher = [f"paths.multirun={place.runs}", *stand_in(tmp_path / "play", {})]
    for line in commands((CHECKOUT / "docs" / "slurm.md").read_text()):
        done.append(line)
        if line in NOT_HERE:
            continue
        first = next((run.name for run in place.multirun.all_runs()), "")
        for word, meant in {"SWEEP": "demo", "RUN": first, "/tmp/sl": str(playground)}.items():
            line = line.replace(word, meant)
        program, *rest = shlex.split(line)
        if program == "export":
            key, _, value = rest[0].partition("=")
            environment[key] = value
            continue
        programs = {"python": [sys.executable], "skipsweep": [str(Path(sys.executable).with_name("skipsweep"))]}
        more = launcher if "launch.py" in rest else ["--multirun", str(place.runs)] if program == "skipsweep" else []
        command = [*programs[program], *rest, *more]
        ended = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
    assert len(done) > 10
    assert not NOT_HERE.keys() - set(done)
    assert {run.read_status()["state"] for run in place.multirun.all_runs()} == {"done"}
