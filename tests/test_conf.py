"""conf/ as shipped, and launch.py around it, up to the request that planning gets."""

import logging
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import skipsweep
from skipsweep.config import MISSING, Config, choices, leaves
from skipsweep.errors import UserError
from skipsweep.sweep import entry, hydra_schema, infile
from skipsweep.sweep.entry import CONF, from_command_line
from skipsweep.sweep.expand import expand
from skipsweep.sweep.request import GridPoint, LaunchRequest, LocalLauncher

CHECKOUT = CONF.parent
NEEDS = {("data", "text"): ["data.path=x"], ("gate_targets", "list"): ["gate_targets.means=[1,0]"]}
GROUPS = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name != "hydra"
}


@pytest.fixture(scope="module")
def composer():
    return from_command_line([]).composer


# -------------------------------------------------------------------------------------------------------------- conf


@pytest.mark.parametrize(
    ("group", "choice"), [(g, c) for g, names in GROUPS.items() for c in names if g != "experiment"]
)
def test_every_choice_composes(composer, group, choice):
    config = composer([f"{group}={choice}", *NEEDS.get((group, choice), [])])
    assert MISSING not in leaves(config).values()
    base = hydra_schema.union_groups().get(group)
    assert base is None or type(getattr(config, group)) in choices(base).values()


QUESTIONS = [name for name in GROUPS["experiment"] if "arms:" in (CONF / f"experiment/{name}.yaml").read_text()]
"""The other experiment files are single runs; see test_plan_presets.py."""


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_experiment_composes(name):
    request = from_command_line([f"experiment={name}"])
    points = expand(request.overrides, request.sweep, request.composer.options)
    assert {request.config(point).sweep.name for point in points} == {name}
    assert request.sweep.question
    assert request.sweep.source
    assert request.sweep.baseline in {point.arm for point in points}


def test_every_choice_of_the_schema_can_be_made(composer):
    for group, base in hydra_schema.union_groups().items():
        configs = [composer([f"{group}={name}", *NEEDS.get((group, name), [])]) for name in GROUPS[group]]
        assert {type(getattr(config, group)) for config in configs} == set(choices(base).values())


def test_every_file_says_what_it_is():
    for file in CONF.rglob("*.yaml"):
        first = file.read_text().splitlines()[:2]
        assert any(re.match(r"# [A-Z].{10,}", line) for line in first) or file.parent.name == "help", file


def test_defaults_are_the_documented_ones(composer):
    config = composer([])
    assert config.skip_layers.layers == "none"
    assert (config.head_type.name, config.selection_method.name) == ("add", "late_to_early")
    assert (config.model.layers, config.data.name, config.schedule.name) == (8, "sotu", "trapezoid")
    assert (config.compute.device, config.logger.name, config.logger.mode) == ("cpu", "wandb", "offline")


# ----------------------------------------------------------------------------------------------------------- request


def test_the_request_holds_what_was_asked_for():
    request = from_command_line(["-m", "experiment=demo", "plan=true", "retry=failed", "hydra.launcher.parallel=2"])
    assert request.command == ["launch.py", "-m", *request.overrides, "hydra.launcher.parallel=2"]
    assert request.overrides == ["experiment=demo", "plan=true", "retry=failed"]
    assert request.launcher == {"kind": "local", "name": "local", "parallel": 2, "timeout_min": 0.0}
    assert (request.plan, request.retry, request.multirun) == (True, "failed", True)
    assert list(request.sweep.arms) == ["none", "one", "two"]


def test_a_sweep_is_one_without_the_flag():
    assert from_command_line(["seed=1,2"]).multirun
    assert not from_command_line(["seed=1"]).multirun


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hydra.launcher.paralel=2"], "no key paralel in hydra.launcher; did you mean parallel?"),
        (
            ["+hydra.launcher.speed=2"],
            "hydra.launcher.speed: unknown key of hydra/launcher=local; valid: name, parallel, timeout_min",
        ),
        (["hydra.launcher.parallel=0"], "hydra.launcher.parallel=0: at least 1"),
        (["hydra.launcher.parallel=x"], "could not be converted to Integer"),
        (["hydra.launcher.name=slurm"], "hydra.launcher.name=slurm: write hydra/launcher=slurm"),
        (["hydra/launcher=basic"], "hydra/launcher=basic: not a launcher of skipsweep; valid: local"),
        (["hydra/launcher=slrm"], "hydra/launcher=slrm: no such choice; did you mean slurm?"),
        (["head_type=5"], "head_type takes the name of one choice; valid: add"),
        (["seed"], "cannot read override 'seed': it has no value; valid: KEY=VALUE"),
    ],
)
def test_bad_requests_are_refused(arguments, told):
    with pytest.raises(UserError, match=re.escape(told)):
        from_command_line(arguments)


def test_a_point_that_cannot_be_composed_names_its_block():
    request = from_command_line([])
    with pytest.raises(UserError, match=r"^in sweep\.arms\.mine: seed=x: Value"):
        request.config(GridPoint("mine", ("seed=x",)))


BROKEN = {
    "body": ("schedule: {stepz: 5}", "conf/experiment/broken.yaml: no key stepz in schedule=trapezoid; did you mean"),
    "sweep": ("sweep: {qestion: x}", "conf/experiment/broken.yaml: no key qestion in sweep; did you mean question?"),
    "type": ("schedule: {steps: abc}", "conf/experiment/broken.yaml: schedule.steps: Value 'abc' of type 'str'"),
    "yaml": ("sweep: {question: [x", "not YAML: while parsing"),
    "group": ("skip_layers: 5", "broken.yaml: skip_layers: 5: in a file write `skip_layers: {layers: 5}`"),
    "layers": ("skip_layers: [5, 2]", "skip_layers: [5, 2]: in a file write `skip_layers: {layers: [5, 2]}`"),
    "relative default": ("defaults: [head_type: concat]", "is made by `- override /head_type: concat`"),
    "relative override": ("defaults: [override head_type: concat]", "is made by `- override /head_type: CHOICE`"),
    "dots": (
        "schedule.steps: 30",
        "broken.yaml: schedule.steps: 30: only keys of sweep.arms' blocks hold dots; nest it: ",
    ),
    "dots, nested": ("schedule.steps: 30", "nest it: `schedule: {steps: 30}`"),
    "dots of a sweep": ("sweep.seeds: [0, 1]", "nest it: `sweep: {seeds: [0, 1]}`"),
    "dots below": ("sweep: {arms.a: {seed: 3}}", "arms.a: {seed: 3} (in sweep): only keys of sweep.arms' blocks"),
    "dots below, nested": ("sweep: {arms.a: {seed: 3}}", "nest it: `sweep: {arms: {a: {seed: 3}}}`"),
    "list of arms": ("sweep: {arms: [a, b]}", "broken.yaml: sweep.arms is a mapping: name: {key: value}"),
    "text for a section": ("sweep: which", "broken.yaml: sweep is a mapping: {key: value}"),
    "default": ("defaults: [override /head_type: nope]", "head_type=nope: no such choice; valid: add"),
    "number": (
        "defaults: [override /skip_layers: 5]",
        "conf/experiment/broken.yaml: Unsupported item value in defaults",
    ),
    "choice": ("defaults: [override /head_tpye: add]", "conf/experiment/broken.yaml: Could not override 'head_tpye'"),
    "choice, meant": ("defaults: [override /head_tpye: add]", "in the defaults list; did you mean head_type? valid: "),
    "tag": (
        "head_type: {name: concat}",
        "head_type.name=concat: a choice is made by its group; write head_type=concat",
    ),
    "arm": ("sweep: {arms: {5: {seed: 1}}}", "conf/experiment/broken.yaml: sweep.arms.5: Key 5 (int) is incompatible"),
}


@pytest.fixture(scope="module")
def private_conf(tmp_path_factory):
    return Path(shutil.copytree(CONF, tmp_path_factory.mktemp("private") / "conf"))


@pytest.mark.parametrize("case", BROKEN)
def test_broken_experiment_files_are_named(private_conf, case):
    body, told = BROKEN[case]
    (private_conf / "experiment/broken.yaml").write_text(f"# @package _global_\n{body}\n")
    with pytest.raises(UserError) as caught:
        from_command_line(["experiment=broken"], private_conf).composer(["experiment=broken"])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


CHOSEN = [group for group in infile.groups([CONF]) if group != "experiment"]


@pytest.mark.parametrize("group", [*CHOSEN, "hydra/launcher"])
def test_a_choice_written_as_a_key_is_shown_as_a_default(private_conf, group):
    """And what is shown is taken."""
    choice = "slurm" if group == "hydra/launcher" else sorted(path.stem for path in (CONF / group).glob("*.yaml"))[-1]
    file = private_conf / "experiment/broken.yaml"
    file.write_text(f"# @package _global_\n{group}: {choice}\n")
    with pytest.raises(UserError) as caught:
        from_command_line(["experiment=broken"], private_conf)
    told = f"{file}: {group}: {choice}: a choice is no key of a file; write it under defaults: `- override /{group}: "
    assert str(caught.value) == f"{told}{choice}`"
    file.write_text("# @package _global_\ndefaults:\n  " + str(caught.value).split("`")[1])
    try:
        from_command_line(["experiment=broken"], private_conf)
    except UserError as problem:
        pytest.fail(str(problem))


def test_files_of_our_own_are_named_from_the_checkout_and_others_whole(private_conf):
    ours, theirs = CONF / "experiment/demo.yaml", private_conf / "experiment/demo.yaml"
    assert infile.path_of("experiment/demo", [private_conf, CONF]) == theirs
    assert (infile.shown(ours), infile.shown(theirs)) == ("conf/experiment/demo.yaml", str(theirs))
    assert infile.path_of("experiment/gone", []) == CONF / "experiment/gone.yaml"


def test_a_forgotten_package_line_is_named(private_conf):
    (private_conf / "experiment/bare.yaml").write_text("seed: 5\n")
    with pytest.raises(UserError, match=r"conf/experiment/bare\.yaml: begins without the line `# @package _global_`"):
        from_command_line(["experiment=bare"], private_conf)


# --------------------------------------------------------------------------------------------------------- launch.py


@pytest.fixture
def quiet_root():
    """`--info` lets everything be logged; this undoes it."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.level, root.handlers = before


@pytest.fixture
def launched(monkeypatch, tmp_path, quiet_root):
    """Run launch.py in this process with a planner that keeps the request; returns (exit status, request)."""
    kept: list[LaunchRequest] = []
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def launch(*arguments, planner=lambda request: 0):
        def keep(request):
            kept.append(request)
            return planner(request)

        fake = SimpleNamespace(launch=keep)
        monkeypatch.setitem(sys.modules, "skipsweep.sweep.launch", fake)
        monkeypatch.setattr(sys, "argv", [str(CHECKOUT / "launch.py"), *arguments])
        monkeypatch.setattr(sys, "orig_argv", ["python", "launch.py", *arguments])
        try:
            runpy.run_path(str(CHECKOUT / "launch.py"), run_name="__main__")
        except SystemExit as exit_:
            return exit_.code or 0, kept[-1] if kept else None
        return 0, kept[-1] if kept else None

    return launch


def test_one_run(launched):
    status, request = launched("skip_layers=[5,2]", "seed=3")
    assert status == 0
    assert request.command == ["python", "launch.py", "skip_layers=[5,2]", "seed=3"]
    assert request.overrides == ["skip_layers.layers=[5,2]", "seed=3"]
    assert not request.multirun
    assert list(Path.cwd().iterdir()) == []
    (point,) = expand(request.overrides, request.sweep, request.composer.options)
    assert request.config(point).skip_layers.layers == [5, 2]


def test_a_sweep_reaches_the_planner_unexpanded(launched):
    status, request = launched("-m", "skip_layers=none,range(0,2),record", "hydra.launcher.parallel=3")
    assert status == 0
    assert request.overrides == ["skip_layers=none,range(0,2),record"]
    assert request.launcher["parallel"] == 3
    assert request.multirun
    assert len(expand(request.overrides, request.sweep, request.composer.options)) == 4


@pytest.mark.parametrize("place", range(3))
def test_the_flag_may_stand_anywhere_and_twice(launched, place):
    arguments = ["skip_layers=none,1", "seed=3"]
    for given in (
        [*arguments[:place], "-m", *arguments[place:]],
        ["--multirun", *arguments[:place], "-m", *arguments[place:]],
    ):
        status, request = launched(*given)
        assert (status, request.multirun, request.overrides) == (0, True, arguments)
        assert request.command == ["python", "launch.py", *given], "as it was typed"


def test_an_experiment_is_a_sweep_without_the_flag(launched):
    _, request = launched("experiment=demo")
    assert len(expand(request.overrides, request.sweep, request.composer.options)) == 6


def test_the_planners_status_is_the_exit_status(launched):
    assert launched(planner=lambda request: 1)[0] == 1
    assert launched("-m", "seed=1,2", planner=lambda request: 1)[0] == 1


def refuse(request):
    raise UserError("layer 77 is outside the trunk")


def interrupt(request):
    raise KeyboardInterrupt


def stumble(request):
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_errors_of_planning(launched, capfd, monkeypatch, mode):
    assert launched(*mode, planner=refuse)[0] == 2
    assert capfd.readouterr().err == "error: layer 77 is outside the trunk\n"
    assert launched(*mode, planner=interrupt)[0] == 130
    with pytest.raises(ZeroDivisionError):
        launched(*mode, planner=stumble)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        launched(*mode, planner=refuse)


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("seeds", ["range(0,3)", "0,1,2", "[0,1,2]", "choice(0,1,2)", "'range(0,3)'"])
def test_several_seeds_are_one_set_and_need_no_flag(launched, mode, seeds):
    status, request = launched(*mode, "experiment=demo", f"sweep.seeds={seeds}")
    assert status == 0
    points = expand(request.overrides, request.sweep, request.composer.options)
    assert [point.seed for point in points if point.block == "one"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["schedule.stepz=5"], "schedule.stepz=5: no key stepz in schedule=trapezoid; did you mean steps?"),
        (["-m", "seed=1,2", "schedule.stepz=5"], "schedule.stepz=5: no key stepz in schedule=trapezoid"),
        (["seed=1,2"], "seed=1,2 stands for several values: add -m to run them all"),
        (["skip_layers=none,range(0,2)"], "skip_layers=none,range(0,2) stands for several values: add -m"),
        (["--cfg", "job", "head_type=ad"], "head_type=ad: no such choice; did you mean add?"),
        (["--info", "defaults", "head_type=ad"], "head_type=ad: no such choice; did you mean add?"),
        (["--help", "head_type=ad"], "head_type=ad: no such choice; did you mean add?"),
        (["--cfg", "job", "-m"], "Only one of --run, --multirun, --cfg"),
        (["head_type=5"], "head_type=5: head_type takes the name of one choice; valid: add"),
        (["head_type.name=concat"], "a choice is made by its group; write head_type=concat"),
        (["-m", "hydra/sweeper=basic"], "leave hydra/sweeper=skipsweep as it is"),
        (["-cd", "nowhere"], "nowhere' not found"),
        (["-cn", "nowhere"], "Cannot find primary config 'nowhere'"),
    ],
)
def test_errors_of_composition_are_one_line(launched, capfd, arguments, told):
    status, request = launched(*arguments)
    told_us = capfd.readouterr().err
    assert status == 2
    assert request is None
    assert told_us.startswith("error: ")
    assert told in told_us
    assert told_us.count("\n") == 1


def test_a_private_folder_adds_choices(launched, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("layers: 3\ndim: 64\nheads: 2\nmlp_ratio: 2\n")
    _, request = launched("-m", "-cd", str(tmp_path), "model=mine,tiny")
    points = expand(request.overrides, request.sweep, request.composer.options)
    assert [request.config(point).model.layers for point in points] == [3, 8]
    assert request.composer.options("model") == [
        "medium",
        "mine",
        "skip_middle",
        "skip_middle_tiny",
        "small",
        "small_2025_11",
        "tiny",
    ]


def test_help_names_groups_and_flags_and_no_schema(launched, capfd):
    assert launched("--help")[0] == 0
    told = capfd.readouterr().out
    for group, names in GROUPS.items():
        assert f"\n{group}: {', '.join(names)}\n" in told
    assert "schema" not in told
    assert "Powered by Hydra" not in told
    documented = set(re.findall(r"^ +([a-z_.]+)=", told, re.MULTILINE))
    config = Config()
    for key in documented:
        *parents, last = key.removeprefix("hydra.launcher.").split(".")
        node = LocalLauncher() if key.startswith("hydra.launcher.") else config
        for name in parents:
            node = getattr(node, name)
        assert hasattr(node, last), key
    assert {"plan", "retry", "hydra.launcher.parallel"} <= documented


def test_examples_in_the_help_compose(launched, capfd):
    launched("--help")
    examples = re.findall(r"^ +python launch\.py (.*)$", capfd.readouterr().out.split("Examples:")[1], re.MULTILINE)
    assert len(examples) >= 4
    for example in examples[:4]:
        request = from_command_line(example.split())
        points = expand(request.overrides, request.sweep, request.composer.options)
        assert len(points) >= 1
        request.config(points[0])


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("head_type=concat_", "head_type=concat_mlp head_type=concat_mlp_narrow"),
        ("skip_layers=5 mod", "model. model="),
        ("-m skip_layers='[1,2]',3 seed=1 model=t", "model=tiny"),
        ("schedule=cosine schedule.f", "schedule.final="),
        ("s", "scale= schedule. schedule= seed= selection_method. selection_method= skip_layers. skip_layers= sweep."),
        ("hydra/l", "hydra/launcher="),
        ("head_type=[5 mod", ""),
    ],
)
def test_tab_completion(launched, capfd, monkeypatch, line, offered):
    monkeypatch.setenv("COMP_LINE", f"python launch.py {line}")
    launched("-sc", "query=bash")
    told = capfd.readouterr()
    assert told.out.strip() == offered
    assert told.err == ""


def test_other_ranks_follow_before_anything_is_composed(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(skipsweep, "torchrun", SimpleNamespace(execute_as_worker=lambda: 7), raising=False)
    monkeypatch.setitem(sys.modules, "hydra", None)  # importing it would fail
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(CHECKOUT / "launch.py"), run_name="__main__")
    assert exit_.value.code == 7


def test_a_checkout_elsewhere_works_from_any_folder_and_leaves_nothing_there(tmp_path):
    """Its own conf/, package and plugin are used, whatever is installed; nothing heavy is imported on the way."""
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in ("conf", "hydra_plugins", "skipsweep"):
        shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "launch.py", copy)
    (copy / "skipsweep/sweep/launch.py").write_text(
        "import sys, skipsweep.sweep.entry as entry\n"
        "def launch(request):\n"
        "    assert not {'torch', 'wandb', 'submitit', 'numpy'} & set(sys.modules), 'slow to import'\n"
        "    print(entry.__file__, request.launcher, request.overrides)\n"
        "    return 5\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "COMP_LINE", "HYDRA_FULL_ERROR")}
    command = [sys.executable, "-W", "error", str(copy / "launch.py"), "-m", "skip_layers=1,[2,3]"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    launcher = {"kind": "local", "name": "local", "parallel": 1, "timeout_min": 0.0}
    assert done.stdout == f"{copy / 'skipsweep/sweep/entry.py'} {launcher} ['skip_layers=1,[2,3]']\n"
    assert done.returncode == 5
    assert list(elsewhere.iterdir()) == []


def test_slurm_brings_a_machine_with_eight_gpus_unless_another_is_named():
    def machine(*arguments):
        request = from_command_line(["-m", "hydra/launcher=slurm", *arguments])
        (point,) = expand(request.overrides, request.sweep, request.composer.options)
        return request.config(point).compute

    assert (machine().device, machine().nodes, machine().gpus) == ("cuda", 1, 8)
    assert machine("compute.nodes=2").nodes == 2
    assert machine("compute=cpu").device == "cpu"
    assert machine("compute=gpu").gpus == 1


def test_keys_of_slurm_are_checked():
    request = from_command_line(["hydra/launcher=slurm", "hydra.launcher.partition=low", "hydra.launcher.detach=true"])
    assert request.launcher["kind"] == "slurm"
    assert (request.launcher["partition"], request.launcher["detach"]) == ("low", True)
    for wrong, told in (
        ("hydra.launcher.partitoin=x", "did you mean partition?"),
        ("+hydra.launcher.extra=1", "unknown key of hydra/launcher=slurm"),
        ("hydra.launcher.timeout_min=long", "could not be converted to Integer"),
        ("hydra.launcher.nodes=2", "write compute.nodes=..."),
    ):
        with pytest.raises(UserError, match=re.escape(told)):
            from_command_line(["hydra/launcher=slurm", wrong])


def test_a_bug_of_ours_is_not_taken_for_bad_input():
    with pytest.raises(ValueError, match="ours"), entry.explained():
        raise ValueError("ours")
