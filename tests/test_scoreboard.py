"""Every row of the scoreboard (docs/reliability.md) has a mutant: a fault put into the code that its test must see."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SLURM = "tests/slurm/test_slurm_faults.py"


@dataclass(frozen=True)
class Mutant:
    """One change of the sources, and the test that fails with it."""

    file: str
    old: str
    new: str
    test: str


MUTANTS: dict[str, Mutant] = {
    "1 exact resume: generators are forgotten": Mutant(
        "skipsweep/train.py",
        "        _set_random_states(states[self.world.rank % len(states)])\n",
        "",
        "tests/test_resume.py::test_resume_is_bit_exact",
    ),
    "2 chain resume: a finished run is trained again": Mutant(
        "skipsweep/job.py",
        'if run.read_status()["state"] == "done":\n        return True\n    result = files.read_json(run.result)',
        "result = None",
        "tests/test_resume.py::test_a_finished_run_is_left_alone",
    ),
    "3 kills: the newest checkpoint is deleted": Mutant(
        "skipsweep/checkpoint.py",
        "if path.name <= newest.name][:keep]",
        "if path.name < newest.name][:keep]",
        "tests/test_chaos.py::test_kills_at_random_moments_change_nothing",
    ),
    "4 crash points: a file is not flushed": Mutant(
        "skipsweep/checkpoint.py",
        "        os.fsync(f.fileno())\n",
        "",
        "tests/test_checkpoint.py::test_a_power_cut_cannot_leave_a_name_without_its_content",
    ),
    "5 sick runs: a signal is taken for an exception": Mutant(
        "skipsweep/sweep/local.py",
        "signal_name = signal.Signals(-exit_code).name if exit_code < 0 else None",
        "signal_name = None",
        "tests/test_faults.py::test_every_way_to_end_is_told_and_harms_no_other",
    ),
    "6 relaunch: jobs are not found by their name": Mutant(
        "skipsweep/slurm/submission.py",
        "return match[1] if match else None",
        "return None",
        f"{SLURM}::test_a_launcher_that_dies_around_sbatch",
    ),
    "6 relaunch: an older job executes all the same": Mutant(
        "skipsweep/slurm/batch_step.py",
        "if not ours or run.cancelled.exists():",
        "if run.cancelled.exists():",
        f"{SLURM}::test_a_job_that_was_overlooked_leaves_a_run_alone",
    ),
    "7 preemption: every warning is taken for the time limit": Mutant(
        "skipsweep/slurm/batch_step.py",
        'why = "timeout" if self._out_of_time() and not self._was_preempted() else "preempted"',
        'why = "timeout"',
        "tests/slurm/test_slurm_jobs.py::test_a_job_of_ten_minutes_is_requeued_as_well",
    ),
    "10 damaged checkpoints: sums are not compared": Mutant(
        "skipsweep/checkpoint.py",
        'if digest != entry["sha256"]:',
        "if False:",
        "tests/test_checkpoint.py::test_damage_is_found_named_and_passed_over",
    ),
    "11 not finite: gradients are not looked at": Mutant(
        "skipsweep/train.py",
        "torch.isfinite(loss) & torch.isfinite(grad_norm)",
        "torch.isfinite(loss)",
        "tests/test_faults.py::test_no_update_with_a_number_that_is_none",
    ),
    "12 bad data: token ids are not compared with the vocabulary": Mutant(
        "skipsweep/data/shards.py",
        "_check_vocab(path, block, start, vocab_size)\n",
        "pass\n",
        "tests/test_data_shards.py::test_bad_shard_is_named_with_file_and_offset",
    ),
    "13 torn logs: a torn line is not ended": Mutant(
        "skipsweep/files.py",
        "if f.tell() and not _ends_with_newline(f):",
        "if False:",
        "tests/test_files.py::test_a_cut_anywhere_loses_the_torn_row_alone",
    ),
}
"""Rows 1, 8 and others have further ones beside their tests (test_resume.py, test_agreement.py)."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ours, without what git ignores; one for all, so that it is compiled once."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("skipsweep", "hydra_plugins", "conf", "tests"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("launch.py", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, folder / name)
    return folder


@pytest.fixture
def mutate(checkout: Path) -> Iterator[Callable[[Mutant], None]]:
    """Puts a mutant into the copy, for one test."""
    before: dict[Path, str] = {}

    def put(mutant: Mutant) -> None:
        source = checkout / mutant.file
        text = before[source] = source.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.file} has changed; write the mutant anew"
        source.write_text(text.replace(mutant.old, mutant.new))

    yield put
    for source, text in before.items():
        source.write_text(text)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str, checkout: Path, mutate: Callable[[Mutant], None]) -> None:
    mutate(MUTANTS[name])
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", MUTANTS[name].test]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=900)
    if "skipped" in done.stdout and "failed" not in done.stdout:
        pytest.skip("needs SLURM")
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout, done.stdout
