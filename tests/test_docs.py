"""What the documents say is true: commands can be typed, choices exist, files are there, links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest

from skipsweep import files
from skipsweep.cli import app
from skipsweep.sweep import launch
from skipsweep.sweep.entry import from_command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "multirun" / "README.md", *ROOT.glob("docs/*.md")]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(text: str, program: str) -> list[str]:
    """Lines of code blocks that call `program`, without prompts and remarks."""
    lines = [line.removeprefix("$ ") for _, block in FENCE.findall(text) for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.startswith(program)]


LAUNCHES = commands(README, "python launch.py")


def test_there_are_examples() -> None:
    assert len(LAUNCHES) >= 6


@pytest.mark.parametrize("line", LAUNCHES)
def test_launch_examples_can_be_planned(
    line: str, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPSWEEP_DATA", str(data_root))
    arguments = shlex.split(line)[2:]
    plan = launch.make_plan(from_command_line([*arguments, f"paths.multirun={tmp_path}"]))
    assert plan.points
    assert all(seen.state == "new" for seen in plan.observations.values())


def test_skipsweep_examples_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups if group.name}
    for line in commands(README, "skipsweep "):
        assert shlex.split(line)[1] in known, line


def test_the_table_of_groups_lists_all_choices() -> None:
    listed: dict[str, set[str]] = {}
    for groups, choices in re.findall(r"^\| ((?:`[\w/]+`(?:, )?)+) \| ([^|]*) \|", README, re.MULTILINE):
        each = [{re.sub(r" \(.*\)|,? or .*", "", c).strip() for c in part.split(",")} for part in choices.split(";")]
        listed |= dict(zip(re.findall(r"`([\w/]+)`", groups), each, strict=True))
    there = {folder.name: {p.stem for p in folder.glob("*.yaml")} for folder in (ROOT / "conf").iterdir()}
    for group in there.keys() - {"config.yaml", "hydra", "experiment"}:
        assert listed[group] - {""} == there[group], group


def test_the_file_tree_is_there() -> None:
    tree = README.split("## Where things are")[1]
    block = FENCE.search(tree)
    assert block
    for line in block[2].splitlines():
        folder = ROOT / "skipsweep" if line.startswith(" ") else ROOT
        for name in re.split(r"  +", line.strip())[0].split():
            assert (folder / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def test_the_run_folder_example_reads_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [(_, code)] = [b for b in FENCE.findall((ROOT / "multirun" / "README.md").read_text()) if b[0] == "python"]
    run = tmp_path / "multirun" / "runs" / "<name>"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"val_loss": 2.0}))
    (run / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(code, found)
    assert found["result"] == {"val_loss": 2.0}
    assert found["rows"] == [{"step": 0}, {"step": 1}]


def test_every_documented_file_of_a_run_has_a_name_in_the_code() -> None:
    from skipsweep.rundir import RunDir

    text = (ROOT / "multirun" / "README.md").read_text()
    run = RunDir(Path("r"))
    for path in (run.config, run.identity, run.status, run.serves, run.leases, run.env, run.metrics, run.result):
        assert path.name in text
    assert run.checkpoints.name in text


def test_whatever_an_experiment_cites_is_among_the_sources() -> None:
    cited = (ROOT / "docs" / "sources.md").read_text()
    names = re.findall(r"^\| (.+?) \|", cited, re.MULTILINE)[1:]
    said = [files.read_yaml(file).get("sweep", {}).get("source") for file in ROOT.glob("conf/experiment/*.yaml")]
    assert said.count(None) < 6
    assert {source.split(",")[0] for source in said if source} <= {*names, "ours", "made for this demonstration"}
