"""docs/add-a-mechanism.md, applied to a copy of the tree: what it claims there is so, and it is as short as it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from skipsweep.config import AdamW
from skipsweep.model.init import ROLES

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "add-a-mechanism.md").read_text()
COPIED = ("skipsweep", "conf", "hydra_plugins", "tests", "docs", "launch.py", "README.md", "pyproject.toml")
MOST_LINES = 60
TRUNK = {f"skipsweep/model/{name}.py" for name in ("gpt", "blocks", "llama", "attention", "context", "head", "seams")}
NAME = "add_low_rank"


@dataclass(frozen=True)
class Hunk:
    """A place in a file, and what it becomes; `old` is empty for a new file."""

    path: str
    old: str
    new: str
    changed: int
    """Lines added or replaced."""


def hunks(text: str) -> list[Hunk]:
    """The document's diffs: a line with the path, then lines that are kept, added (+) and taken out (-)."""
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        first, *lines = block.splitlines()
        assert first.startswith("--- "), first
        old, new = ("\n".join(line[1:] for line in lines if line[:1] not in other) for other in ("+", "-"))
        found.append(Hunk(first[4:], old, new, sum(line.startswith("+") for line in lines)))
    return found


def apply(hunk: Hunk, root: Path) -> None:
    """Replace the one place that fits."""
    path = root / hunk.path
    if not hunk.old:
        assert not path.exists()
        path.write_text(hunk.new + "\n")
        return
    before = path.read_text()
    assert before.count(hunk.old) == 1, f"{hunk.path} has {before.count(hunk.old)} places like {hunk.old!r}"
    path.write_text(before.replace(hunk.old, hunk.new))


HUNKS = hunks(GUIDE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with the mechanism in it."""
    root = tmp_path_factory.mktemp("tree")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    for hunk in HUNKS:
        apply(hunk, root)
    return root


def python(root: Path, *arguments: str) -> str:
    """What a Python process of the copy prints; it has to end well."""
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_short_and_leaves_the_trunk_alone() -> None:
    lines = sum(hunk.changed for hunk in HUNKS)
    told = re.search(r"(\d+) lines in all, of which (\d+) are tests", GUIDE)
    assert told
    of_tests = sum(hunk.changed for hunk in HUNKS if hunk.path.startswith("tests/"))
    assert [lines, of_tests] == [int(number) for number in told.groups()]
    assert lines <= MOST_LINES
    assert not TRUNK & {hunk.path for hunk in HUNKS}


def test_it_names_every_role_and_its_rate() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|.*`(\w+)`(?:, weight decay)? \|$", GUIDE, re.MULTILINE))
    rates = {f.name.removesuffix("lr").strip("_") or "matrix": f.name for f in fields(AdamW) if f.name.endswith("lr")}
    assert told == {role: rates[role] for role in ROLES}


def test_it_runs(copy: Path) -> None:
    """The tiny trunk, three steps, through launch.py, with the parameters that the guide counts."""
    sizes = ["data=synthetic", "data.batch_tokens=512", "data.seq_len=128", "data.val_tokens=512", "schedule.steps=3"]
    python(copy, "launch.py", f"head_type={NAME}", "skip_layers=5", *sizes, "logger=none", "paths.data=corpora")
    [found] = [json.loads(path.read_text()) for path in copy.glob("multirun/runs/*/result.json")]
    assert found["steps"] == 3
    assert found["parameters"]["readout"] == 2 * 128 * 16
    assert found["val_loss"] < found["val_curve"][0]["val/loss"]


CLAIMED = {
    "tests/test_choices.py": ("test_every_choice_trains",),
    "tests/test_golden.py": ("test_losses_have_not_moved",),
    "tests/test_inspection.py": ("test_every_mechanism_inspects_and_contributions_add_up",),
    "tests/test_knobs.py": ("test_every_field_changes_the_numbers",),
    "tests/test_model_count.py": (
        "test_parameters_by_group_are_the_built_models",
        "test_operations_agree_with_torchs_counter",
    ),
    "tests/test_model_gpt.py": (
        "test_at_its_neutral_setting_a_mechanism_is_the_baseline",
        "test_arms_of_one_seed_share_their_parameters_bit_for_bit",
        "test_gradients_agree_with_differences",
        "test_every_parameter_gets_a_gradient",
        "test_a_loss_depends_on_every_earlier_token_and_on_no_later_one",
        "test_no_token_sees_another_document",
        "test_other_precisions_agree_with_float32",
        "test_only_outputs_that_a_seam_needs_are_kept",
    ),
    "tests/test_model_readout.py": (
        "test_low_rank_maps_are_added_to_the_last_output",
        "test_what_a_head_adds",
        "test_every_head_says_what_it_takes",
        "test_the_documents_table_of_heads_says_what_each_takes",
    ),
    "tests/test_docs.py": ("test_the_table_of_groups_lists_all_choices",),
}
"""Tests that the mechanism has to be picked up by, those of tables of all choices included."""


def test_the_tests_pick_it_up(copy: Path) -> None:
    python(copy, "tests/test_golden.py", NAME)
    one = f"{NAME} or head_type.rank or low_rank or every_head_says or documents_table or table_of_groups"
    wanted = f"({one}) and not full_size"  # which plans every model: as much time as all others together
    told = python(copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", wanted, *CLAIMED)
    passed = {(path, test) for path, test in re.findall(r"^(tests/\w+\.py)::(\w+).* PASSED", told, re.MULTILINE)}
    assert passed >= {(path, test) for path, tests in CLAIMED.items() for test in tests}
