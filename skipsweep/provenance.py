"""Which code, on which machine: what stands beside a result so that it can be believed later. Imports no torch."""

import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import uuid
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
COMMIT_FILE = "commit.json"
"""Written beside a frozen copy of the package, which is no checkout of its own."""


@cache
def code_hash() -> str:
    """Hash of the package's sources, 12 hex: tells whether two attempts ran the same code."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def commit() -> str | None:
    """The checkout's commit, with `+` behind it if tracked files were edited; None outside of git."""
    frozen = CHECKOUT / COMMIT_FILE
    if frozen.exists():
        return json.loads(frozen.read_text())["commit"]
    head = _git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(CHECKOUT), *args], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def freeze_code(folder: Path) -> Path:
    """Copy package and conf to `folder`/<code hash>/, once; returns that path, to stand first on a job's PYTHONPATH."""
    target = folder / code_hash()
    if not target.exists():
        tmp = folder / f".{target.name}.{uuid.uuid4().hex}.tmp"
        shutil.copytree(PACKAGE, tmp / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        if (CHECKOUT / "conf").is_dir():
            shutil.copytree(CHECKOUT / "conf", tmp / "conf")
        (tmp / COMMIT_FILE).write_text(json.dumps({"commit": commit()}))
        try:
            os.rename(tmp, target)
        except OSError:  # another launcher was faster, with the very same content
            shutil.rmtree(tmp, ignore_errors=True)
    return target


def machine() -> dict[str, Any]:
    """Host, Python and CPU count of this process."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "cpus": cpus(),
        "platform": platform.platform(),
    }


def cpus() -> int:
    """Cores that this process may use, which under a scheduler is less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
