"""Bad input: one line that says what, where and what would be valid; exit status 2; nothing started, nothing lost."""

import json
import logging
import runpy
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from commands import CHECKOUT, TINY, Done, Place, request

from skipsweep.sweep import entry, local
from skipsweep.sweep import freeze as freezing
from skipsweep.sweep import launch as launching
from skipsweep.sweep import plan as planning


@pytest.fixture
def place(tmp_path: Path, data_root: Path) -> Place:
    return Place(tmp_path / "runs", data_root)


@pytest.fixture
def launch(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Done]]:
    """launch.py in this process; should it come to training, that fails."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "start", None)

    def run(*arguments: str, whole: bool = False) -> Done:
        """`whole`: through Hydra's own main function as well, which composes everything three times."""
        monkeypatch.setattr(sys, "argv", [str(CHECKOUT / "launch.py"), *arguments])
        with pytest.raises(SystemExit) as ended:
            through_hydra() if whole else around_hydra(arguments)
        told = capfd.readouterr()
        return Done(int(ended.value.code or 0), told.out, told.err)

    yield run
    root.level, root.handlers = before


def through_hydra() -> None:
    runpy.run_path(str(CHECKOUT / "launch.py"), run_name="__main__")


def around_hydra(arguments: Sequence[str]) -> None:
    with entry.reported():
        sys.exit(launching.launch(request(arguments)))


def check(place: Place, done: Done, told: str) -> None:
    """What all refusals have in common."""
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert told in done.err
    assert done.err.count("\n") == 1
    assert len(done.err) < 1000
    assert "Traceback" not in done.out + done.err
    assert not list(place.multirun.all_runs())
    assert not list(place.multirun.all_sweeps())


SETTINGS: dict[str, tuple[str, str]] = {
    "unknown key": ("schedule.stepz=5", "schedule.stepz=5: no key stepz in schedule=trapezoid; did you mean steps?"),
    "unknown group": ("colour=red", "no key colour"),
    "unknown key, added": ("+colour=red", "colour"),
    "a key of another choice": ("data.path=notes", "data=synthetic has no key path (that belongs to data=text)"),
    "unknown choice": ("head_type=ad", "head_type=ad: no such choice; did you mean add?"),
    "a number for a choice": ("head_type=3", "head_type takes the name of one choice; valid: add, add_detached"),
    "text for a number": ("schedule.steps=many", "schedule.steps"),
    "half a step": ("schedule.steps=1.5", "schedule.steps"),
    "a list for a number": ("optim.lr=[1,2]", "optim.lr"),
    "nothing for a number": ("schedule.steps=null", "schedule.steps"),
    "no value yet": ("schedule.steps=???", "schedule.steps"),
    "not finite": ("optim.lr=nan", "optim.lr=nan is not finite"),
    "not finite, in a list": (
        "lambda_init.skip_lambda=[inf] skip_layers=0",
        "lambda_init.skip_lambda=[inf] is not finite",
    ),
    "a negative rate": ("optim.lr=-1", "optim.lr=-1.0 must not be negative"),
    "a decay of one": ("optim.beta2=1", "optim.beta2=1.0 is a decay per step; valid: 0 to below 1"),
    "layer outside": ("skip_layers=7", "layer 7 is outside the trunk of 3 layers; valid: 0 to 1"),
    "negative layer": ("skip_layers=-1", "layer -1 is outside the trunk"),
    "the last layer": ("skip_layers=2", "layer 2 is the last one, which the head always sees; valid: 0 to 1"),
    "a layer twice": ("skip_layers=[0,0]", "names 0 twice"),
    "no layer": ("skip_layers=layer3", "skip_layers=layer3: no such choice"),
    "beyond the ordering": (
        "skip_layers=top9",
        "top9: the ordering late_to_early has 2 layers ([1,0]); valid: top1 to top2",
    ),
    "nothing of an ordering": ("skip_layers=top0", "valid: top1 to top2"),
    "no ranking": ("skip_layers=top1 selection_method=best_to_worst", "selection_method=best_to_worst needs a ranking"),
    "sources without a head for them": (
        "head_type=last skip_layers=0",
        "head_type=last takes no sources, but skip_layers=[0]",
    ),
    "a source that a head cannot take": (
        "head_type=add_detached skip_layers=[0,extra]",
        "skip_layers: `extra` is a source for head_type=add, add_renorm",
    ),
    "a key of another head": (
        "head_type=concat_mlp head_type.width=4",
        "has no key width (that belongs to head_type=concat_mlp_narrow)",
    ),
    "batch": ("data.batch_tokens=100", "data.batch_tokens=100 is no multiple of data.seq_len=16"),
    "no epochs": ("data.epochs=0", "data.epochs=0; valid: a whole number from 1 on"),
    "too few tokens": ("schedule.steps=1000", "needs 128000 tokens, data=synthetic has"),
    "too few validation tokens": ("data.val_tokens=1600000", "data.val_tokens=1600000"),
    "another vocabulary": ("data.vocab_size=99", "data.vocab_size=99, but data=synthetic has 32 token ids"),
    "another corpus": ("data.fingerprint=0123", "data.fingerprint=0123, but data=synthetic is"),
    "a chain without states": ("data.states=0", "data.states=0"),
    "retry": ("retry=all", "retry=all is unknown; valid: none, failed"),
    "seed": ("seed=-1", "seed=-1 must not be negative"),
    "a seed beyond 64 bits": ("seed=99999999999999999999", "seed=99999999999999999999 is too large; valid: below 2^63"),
    "launcher's key": ("hydra.launcher.paralel=2", "no key paralel in hydra.launcher; did you mean parallel?"),
    "launcher's value": ("hydra.launcher.parallel=0", "hydra.launcher.parallel=0: at least 1"),
    "launcher": ("hydra/launcher=joblib", "hydra/launcher=joblib: no such choice; valid: local"),
    "SLURM launcher's key": (
        "-m hydra/launcher=slurm hydra.launcher.timeout=5",
        "no key timeout in hydra.launcher; did you mean timeout_min?",
    ),
    "a folder that is a pattern to SLURM": (
        "-m hydra/launcher=slurm compute=cpu paths.multirun=/nowhere/50%",
        "paths.multirun=/nowhere/50%: SLURM would replace the %",
    ),
    "several values": ("seed=1,2", "seed=1,2 stands for several values: add -m"),
    "no value": ("seed", "'seed'"),
    "unbalanced": ("skip_layers=[0", "skip_layers=[0"),
    "name upwards": ("-m sweep.name=../x", "sweep.name='../x' cannot name a folder; valid: up to 100 letters"),
    "name upwards, one run": ("sweep.name=../x", "sweep.name='../x' cannot name a folder"),
    "absolute name": ("-m sweep.name=/abs", "sweep.name='/abs' cannot name a folder"),
    "name with a folder": ("-m sweep.name=a/b", "sweep.name='a/b' cannot name a folder"),
    "name of the folder itself": ("-m sweep.name=.", "sweep.name='.' cannot name a folder"),
    "empty name": ("-m sweep.name=", "sweep.name='' cannot name a folder"),
    "name of single runs": (
        "-m sweep.name=single",
        "sweep.name=single stands for runs that are launched by themselves",
    ),
    "long name": ("-m sweep.name=" + 300 * "x", "cannot name a folder; valid: up to 100 letters"),
    "baseline": (
        "-m skip_layers=none,0 sweep.baseline=best",
        "best is not an arm of this sweep; valid: skip_layers=none",
    ),
    "seeds": ("-m sweep.seeds=many", "sweep.seeds"),
    "half a seed": ("-m sweep.seeds=[1.5]", "sweep.seeds: 1.5 is not a seed"),
    "no seeds": ("-m sweep.seeds=[]", "no seed at all"),
    "negative seeds": ("-m sweep.seeds=[-1]", "seed=-1 must not be negative"),
    "a bad point among good ones": ("-m skip_layers=none,0,7", "layer 7 is outside the trunk"),
    "a sweep over plans": ("-m plan=true,false", "plan cannot be swept over"),
    "a sweep over names": ("-m sweep.name=a,b", "sweep.name cannot be swept over"),
    "a sweep over folders": ("-m paths.multirun=a,b", "paths.multirun cannot be swept over"),
    "a folder that PYTHONPATH cannot hold": ("paths.multirun=runs:1", "PYTHONPATH would split this at ':'"),
    "an empty range": ("-m seed=range(3,3)", "seed=range(3,3)"),
    "unknown experiment": ("experiment=dem", "experiment=dem: no such choice; did you mean demo?"),
    "experiment elsewhere": ("experiment=dem", "; more of your own: -cd FOLDER adds FOLDER/experiment/NAME.yaml"),
}

BY_HYDRA = ("several values", "launcher's value", "no value", "unknown key", "unknown choice")
"""Cases that Hydra's main function sees first, or in another way."""


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case: str, place: Place, launch: Callable[..., Done]) -> None:
    arguments, told = SETTINGS[case]
    check(place, launch(*place.arguments(*arguments.split(" ")), whole=case in BY_HYDRA), told)


@pytest.mark.parametrize("name", ["two\nlines", "a b", "ü", "-x", "x" * 101, "a\x00b", "~", "$HOME"])
def test_names(name: str, place: Place, launch: Callable[..., Done]) -> None:
    check(place, launch(*place.arguments("-m", f"sweep.name='{name}'")), "sweep.name=")


# -------------------------------------------------------------------------------------------------- experiment files

ARMS: dict[str, tuple[str, str]] = {
    "no block": ("arms: {a: 5}", "sweep.arms.a: 5 is not a block of KEY: VALUE"),
    "no blocks": ("arms: [a, b]", "/experiment/mine.yaml: sweep.arms is a mapping: name: {key: value}"),
    "unknown key": ("arms: {a: {schedule.stepz: 5}}", "sweep.arms.a: schedule.stepz=5: no key stepz in schedule"),
    "impossible layer": (
        "arms: {none: {skip_layers: none}, a: {skip_layers: 9}}",
        "in sweep.arms.a: skip_layers: layer 9 is outside the trunk",
    ),
    "impossible, whatever the arm": (
        "arms: {none: {skip_layers: none}, a: {skip_layers: 0}}\nschedule: {warmup_steps: -1}",
        "error: schedule.warmup_steps",
    ),
    "an experiment in an arm": ("arms: {a: {experiment: demo}}", "experiment belongs to the whole sweep"),
    "a launcher in an arm": ("arms: {a: {hydra/launcher: local}}", "belongs to the whole sweep, not to an arm"),
    "unknown baseline": (
        "{arms: {a: {skip_layers: 0}}, baseline: b}",
        "sweep.baseline=b is not an arm of this sweep; valid: a",
    ),
    "more differences": (
        "{arms: {a: {skip_layers: none}, b: {skip_layers: 0, seed: 1, optim.eps: 1}}, may_differ: [skip_layers]}",
        "arm b differs from the baseline a in head_type.name (last -> add), optim.eps (1e-08 -> 1.0); ",
    ),
    "a difference of no setting": (
        "{arms: {a: {skip_layers: none}}, may_differ: [skip_layer]}",
        "sweep.may_differ: skip_layer is no setting of a run; did you mean skip_layers? valid: control, data,",
    ),
    "a difference of no key of a group": (
        "{arms: {a: {skip_layers: none}}, may_differ: [schedule.step]}",
        "sweep.may_differ: schedule.step is no setting of a run; did you mean schedule.steps? valid: schedule.",
    ),
    "unknown setting of the sweep": ("{arm: {}}", "no key arm in sweep; did you mean arms?"),
    "seeds": ("{arms: {a: {skip_layers: 0}}, seeds: few}", "sweep.seeds: 'few' is not a seed"),
    "both set it": (
        "arms: {a: {optim.lr: 1}}",
        "optim.lr is set on the command line (optim.lr=0.01) and in sweep.arms.a",
    ),
    "not YAML": ("{arms: [", "not YAML"),
}


@pytest.mark.parametrize("case", ARMS)
def test_experiments(case: str, place: Place, launch: Callable[..., Done], tmp_path: Path) -> None:
    text, told = ARMS[case]
    (tmp_path / "experiment").mkdir()
    body = f"sweep: {text}" if text.startswith("{") else f"sweep:\n  {text}"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{body}\n")
    check(place, launch(*place.arguments(f"--config-dir={tmp_path}", "experiment=mine"), whole=True), told)


def test_a_file_of_ones_own_is_named_with_its_path(place: Place, launch: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("seed: 5\n")
    done = launch(*place.arguments(f"--config-dir={tmp_path}", "experiment=mine"), whole=True)
    check(place, done, f"error: {tmp_path}/experiment/mine.yaml: begins without the line `# @package _global_`")


# --------------------------------------------------------------------------------------------------------- the data

TEXT = [
    "data=text",
    "data.seq_len=16",
    "data.batch_tokens=128",
    "data.val_tokens=64",
    "logger=none",
    "schedule.steps=2",
]


@pytest.fixture
def text(place: Place, launch: Callable[..., Done], tmp_path: Path) -> Callable[..., Done]:
    """launch.py on texts of one's own, in an own data root."""
    own = [f"paths.multirun={place.runs}", f"paths.data={tmp_path / 'data'}"]
    return lambda *arguments: launch(*TEXT, *own, *arguments)


def test_no_text_is_named(place: Place, text: Callable[..., Done]) -> None:
    check(place, text(), "data.path")


def test_missing_text(place: Place, text: Callable[..., Done], tmp_path: Path) -> None:
    check(place, text(f"data.path={tmp_path}/none.txt"), f"{tmp_path}/none.txt")


def test_empty_text(place: Place, text: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    check(place, text(f"data.path={tmp_path}/empty.txt"), "empty")


def test_a_folder_without_texts(place: Place, text: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    check(place, text(f"data.path={tmp_path}/folder"), f"{tmp_path}/folder")


def test_too_little_validates(place: Place, text: Callable[..., Done], tmp_path: Path) -> None:
    """The launch says what it read when it tokenises, then what is wrong with it, once each."""
    for name, words in (("a.txt", 20), ("b.txt", 500)):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_text("word " * words)
    told = "data.val_tokens=640, data=text has 132 (validation is the end of a.txt, b.txt: 5.0% of the text); valid: at"
    first = text(f"data.path={tmp_path}/folder", "data.val_tokens=640")
    said, error = first.err.splitlines()
    assert (first.status, told in error) == (2, True), error
    assert said == f"data.path={tmp_path}/folder: 2 files read; validation is the end of a.txt, b.txt: 5.0% of the text"
    check(place, text(f"data.path={tmp_path}/folder", "data.val_tokens=640"), told)


def test_what_is_no_text(place: Place, text: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "image.txt").write_bytes(bytes(range(256)) * 40)
    check(place, text(f"data.path={tmp_path}/image.txt"), f"{tmp_path}/image.txt")


def test_unknown_tokenizer(place: Place, text: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("word " * 1000)
    check(place, text(f"data.path={tmp_path}/some.txt", "data.tokenizer=gpt9"), "gpt9")


def test_a_data_root_that_cannot_be(place: Place, launch: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check(place, launch(*place.arguments(f"paths.data={tmp_path}/file/data")), f"{tmp_path}/file")


def broken(folder: Path, damage: Callable[[bytearray], object]) -> Path:
    """Damage the first training shard below a data root."""
    (shard,) = folder.glob("*/train_000001.bin")
    content = bytearray(shard.read_bytes())
    damage(content)
    shard.write_bytes(content)
    return shard


DAMAGE: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "torn": (lambda content: content.__delitem__(slice(-100, None)), "the file ends after"),
    "magic number": (lambda content: content.__setitem__(0, 9), "byte 0: magic number"),
    "beyond the vocabulary": (lambda content: content.__setitem__(1024 + 11, 7), "byte 1034: token 5 is"),
    "another token": (lambda content: content.__setitem__(1024 + 10, content[1034] ^ 1), "not those once written"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_broken_shards(case: str, place: Place, launch: Callable[..., Done], tmp_path: Path) -> None:
    own = place.arguments(f"paths.data={tmp_path / 'data'}")
    assert launch(*own, "plan=true").status == 0
    damage, told = DAMAGE[case]
    shard = broken(tmp_path / "data", damage)
    done = launch(*own)
    check(place, done, told)
    assert str(shard) in done.err


# ------------------------------------------------------------------------------------------------------- the machine

Usage = namedtuple("Usage", "total used free")


def test_no_space_left(place: Place, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezing.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1000, 1000))
    check(
        place,
        launch(*place.arguments()),
        f"no space left: {place.runs} has 0.0 MB free, checkpoints of 1 run",
    )


def test_a_disk_that_fills_up(place: Place, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(place.runs / "config.yaml"))

    monkeypatch.setattr(freezing.RunDir, "freeze", full)
    check(place, launch(*place.arguments()), f"{place.runs / 'config.yaml'}: No space left on device")


@pytest.mark.parametrize("mode", [[], ["-m"]])
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_multirun_that_cannot_be_written(
    mode: list[str], below: str, launch: Callable[..., Done], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    done = launch(*mode, *TINY, f"paths.multirun={tmp_path}/file{below}")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"error: cannot use {tmp_path}/file")
    assert "set paths.multirun" in done.err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_whose_defaults_moved(place: Place, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    made = launching.make_plan(request(place.arguments("skip_layers=0")))
    freezing.freeze(made, "none")
    (run,) = place.multirun.all_runs()
    run.write_status("done", attempt=1)
    run.result.write_text('{"val_loss": 1.0}')
    document = json.loads(run.identity.read_text())
    document["recipe"]["optim.weight_decay"] = 0.5
    run.identity.write_text(json.dumps(document))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    done = launch(*place.arguments("-m", "skip_layers=none,0"))
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert f"error: run {run.name}: the default of optim.weight_decay has moved from 0.5 to " in done.err
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert [one.name for one in place.multirun.all_runs()] == [run.name]


# ------------------------------------------------------------------------------------------------- as a user sees it

TYPED = [
    ("schedule.stepz=5", "did you mean steps?"),
    ("skip_layers=7", "layer 7 is outside the trunk"),
    ("-m skip_layers=none,[0,0]", "names 0 twice"),
    ("-m sweep.name=../x", "cannot name a folder"),
    ("schedule.steps=1000", "needs 128000 tokens"),
    ("-m hydra.launcher.paralel=2", "did you mean parallel?"),
]


@pytest.mark.parametrize(("arguments", "told"), TYPED)
def test_in_a_process_of_its_own(arguments: str, told: str, place: Place) -> None:
    done = place.launch(*arguments.split())
    check(place, done, told)
    assert done.out == ""
    assert not place.runs.exists()


def test_the_whole_traceback_on_request(
    place: Place, launch: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["launch.py", *place.arguments("skip_layers=7")])
    with pytest.raises(planning.UserError, match="layer 7 is outside"):
        runpy.run_path(str(CHECKOUT / "launch.py"), run_name="__main__")


def test_the_checks_would_notice_a_success(place: Place, launch: Callable[..., Done]) -> None:
    """Control: good input passes through the same fixture."""
    done = launch(*place.arguments("plan=true"))
    assert (done.status, done.err) == (0, "")
    with pytest.raises(AssertionError):
        check(place, done, "")
    assert shutil.disk_usage(place.data).free > 1000
