"""Reading a trained model: known answers, exact sums, every mechanism, the command, and the end of a run."""

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipes import ARMS, OWNERS, SMALL_TRACK, recipe, shaken, tokens
from runs import Quiet, configuration, frozen

from skipsweep import cli, files, job
from skipsweep.config import Embeddings, Recipe, Record, Residual, RunConfig, Trapezoid
from skipsweep.data.text import TextStream, text_of
from skipsweep.errors import UserError
from skipsweep.exit_status import Exit
from skipsweep.inspection import document, readings
from skipsweep.inspection import write as writing
from skipsweep.inspection.contributions import contributions, unroll
from skipsweep.inspection.inspect import inspect, read
from skipsweep.inspection.trace import trace
from skipsweep.model.gpt import build
from skipsweep.model.norm import norm
from skipsweep.model.shape import token_embeddings, value_table
from skipsweep.rundir import RunDir
from skipsweep.trained import Trained

WINDOW = 2
EXACT = 1e-10
CARRIED_THROUGH = ("add", "add_renorm", "add_unnormed", "add_detached", "add_fixed_x", "backout")
"""Heads whose features are a sum of multiples of their sources, so that contributions are to it."""
TRUNKS: dict[str, dict[str, Any]] = {
    "plain": {"plain": True},
    "unet": {},
    "sigmoid": {"residual": Residual(unet=[[0, 2], [1, 3]], unet_weight="sigmoid")},
    "rolling": {"residual": Residual(unet=[[0, 2]], rolling=True)},
    "parallel tail": {"residual": Residual(unet=[[0, 2]], parallel_tail=2)},
    **{f"x{k:02d}": {"embeddings": Embeddings(mix=True, extra=k, value_layers=[[0, 3]])} for k in (0, 1, 2, 3, 4)},
    "small track": SMALL_TRACK,
}
CASES: dict[str, Recipe] = {
    **{f"{head} {list(sources)}": recipe(head, sources, dtype="float64") for head, sources in ARMS},
    **{f"{head} widened": recipe(head, (0, "extra"), dtype="float64", widen_head=True) for head in OWNERS},
    **{name: recipe("last", (), dtype="float64", **changes) for name, changes in TRUNKS.items()},
    **{
        f"{name}, backout": recipe("backout", (0, "input"), dtype="float64", **changes)
        for name, changes in TRUNKS.items()
    },
}


def run_config(cfg: Recipe) -> RunConfig:
    return RunConfig(**vars(cfg), logger=None)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- mechanisms


@pytest.mark.parametrize("case", CASES)
def test_every_mechanism_inspects_and_contributions_add_up(case: str) -> None:
    cfg = CASES[case]
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    found = trace(model, ids, WINDOW)
    parts, remark = contributions(model, found, token_embeddings(cfg))
    stream = torch.einsum("s,std->td", parts.stream_weights, parts.vectors)
    torch.testing.assert_close(stream, found.trunk_output[0], rtol=0, atol=EXACT)
    torch.testing.assert_close(parts.parts.sum(0), parts.output, rtol=0, atol=EXACT)
    assert parts.error < EXACT
    assert parts.shares.sum().item() == pytest.approx(1, abs=EXACT)
    head = cfg.head_type.name
    assert (remark is None) == (head in ("last", *CARRIED_THROUGH))
    assert parts.of == ("readout" if head in CARRIED_THROUGH else "stream")

    told = read(Trained(run_config(cfg), 1, model), "run", ids, "drawn", 3, range(cfg.model.layers))
    json.dumps(asdict(told), allow_nan=False)
    values = [f"ve{k}" for k in range(len(cfg.embeddings.value_layers))]
    layers = [f"layer {i}" for i in range(cfg.model.layers)]
    added = [f"ve{k}, layer {layer}" for layer, k in sorted(value_table(cfg).items())]
    assert [lens.what for lens in told.lens] == [*layers, "output", *token_embeddings(cfg), *values, *added]
    assert [lens.normed for lens in told.lens if lens.what in values] == [False] * len(values)
    assert all(len(guesses) == 3 for lens in told.lens for guesses in lens.top)
    for one in told.shares:
        assert sum(abs(term["share"]) for term in one["terms"]) == pytest.approx(1)
    assert told.lambdas == model.lambdas()


def test_reading_changes_nothing() -> None:
    """Hooks are gone afterwards, and the pass was the model's own."""
    cfg = recipe("add", (0, 2, "input"), dtype="float64")
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    before = model.features(ids, WINDOW)
    assert torch.equal(trace(model, ids, WINDOW).features, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model.features(ids, WINDOW), before)


def test_low_precision_says_how_far_off_the_sum_is() -> None:
    cfg = recipe("add", (0,), dtype="bfloat16")
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    parts, remark = contributions(model, trace(model, ids, WINDOW), token_embeddings(cfg))
    assert remark is None
    assert 0 < parts.error < 0.1


# ------------------------------------------------------------------------------------------------------ known answers


def test_weights_are_products_of_later_lambdas_over_all_paths() -> None:
    """The reading of modded-nanogpt #159 on paper: stream weight 2 before every block, and half of layer 0's output
    before block 2."""
    cfg = recipe(
        dtype="float64",
        embeddings=Embeddings(mix=True),
        residual=Residual(unet=[[0, 2]]),
        block_x=2.0,
        block_x00=0.25,
        unet=0.5,
    )
    linear = unroll(build(cfg), ["x00"])
    assert linear.names == ["x00", "layer 0", "layer 1", "layer 2", "layer 3"]
    direct, by_skip = 2 * 2 * 2, 0.5 * 2 * 2  # from layer 0: through blocks 1, 2, 3; into block 2, then 3
    start = 2 + 0.25
    x00 = start * (direct + by_skip) + 0.25 * (2 * 2 + 2 + 1)
    assert linear.trunk_output.tolist() == pytest.approx([x00, direct + by_skip, 4, 2, 1])


def test_the_output_is_decoded_as_the_model_decodes_it() -> None:
    cfg = recipe("concat", (0, "last"), dtype="float64")
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    told = read(Trained(run_config(cfg), 1, model), "run", ids, "drawn", 4, [1])
    p, best = model.logits(ids, told.window_blocks)[0].softmax(-1).max(-1)
    output = next(lens for lens in told.lens if lens.what == "output")
    assert [row[0].id for row in output.top] == best.tolist()
    assert [row[0].p for row in output.top] == pytest.approx(p.tolist())


@torch.no_grad()
@pytest.mark.parametrize("block", ["speedrun", "llama"])
def test_the_last_layers_stream_is_decoded_as_the_output(block: str) -> None:
    """Norms divide by the root of the mean square plus `norm_eps`, here as large as the stream itself."""
    cfg = recipe(dtype="float64", plain=True, block=block, norm_eps=2.0)
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    decoded = readings.decode(model, trace(model, ids, WINDOW).streams[-1], normed=True)
    torch.testing.assert_close(decoded, model.logits(ids, WINDOW)[0])


@torch.no_grad()
def test_concat_heads_decode_a_stream_by_the_last_layers_columns() -> None:
    """As the model does where the other columns are 0."""
    cfg = recipe("concat", (0, 1), dtype="float64", norm_eps=2.0)
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    decoded = readings.decode(model, trace(model, ids, WINDOW).streams[-1], normed=True)
    model.head.weight[:, cfg.model.dim :] = 0
    torch.testing.assert_close(decoded, model.logits(ids, WINDOW)[0])


def test_value_embeddings_are_decoded_as_they_are_and_token_embeddings_normed() -> None:
    cfg = recipe(dtype="float64")
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    told = read(Trained(run_config(cfg), 1, model), "run", ids, "drawn", 1, [])
    table: Any = model.context.embed
    for what, vector in {"ve0": table["ve0"][ids[0]], "x01": norm(table["x01"][ids[0]])}.items():
        lens = next(lens for lens in told.lens if lens.what == what)
        assert [row[0].p for row in lens.top] == pytest.approx(model.head(vector).softmax(-1).amax(-1).tolist())
    titles = [lens.title for lens in told.lens]
    assert titles[:4] == ["output", "x00", "x01", "ve0 (not normed)"]


def test_what_attention_adds_of_a_value_embedding_is_decoded() -> None:
    """The x00-x04 article's W_o(lambda ve): the change to the block where its own values weigh nothing and a token sees
    itself."""
    cfg = recipe(dtype="float64")
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    told = read(Trained(run_config(cfg), 1, model), "run", ids, "drawn", 1, [])
    [(layer, name), *_] = [(i, f"ve{k}, layer {i}") for i, k in sorted(value_table(cfg).items())]
    lens = next(lens for lens in told.lens if lens.what == name)
    block: Any = model.blocks[layer]
    used = model.context(ids[:, :1], 0).layers[layer]._replace(value_lambda=torch.zeros((), dtype=torch.float64))
    added = block.attention(torch.ones(1, 1, cfg.model.dim, dtype=torch.float64), used)[0]
    assert lens.top[0][0].p == pytest.approx(model.head(added).softmax(-1).max().item())


def test_ties_keep_all_k() -> None:
    """Published top-10 lists, keyed by probability, had lost entries to ties."""
    assert readings.top(torch.zeros(2, 8), 5) == [[(i, 0.125) for i in range(5)]] * 2
    [row] = readings.top(torch.tensor([[0.0, 1.0, 0.0, 1.0]]), 3)
    assert [i for i, _ in row] == [1, 3, 0]


def test_effective_rank() -> None:
    assert readings.effective_rank(torch.eye(7)) == pytest.approx(7)
    assert readings.effective_rank(torch.ones(7, 3)) == pytest.approx(1)
    two_to_one = math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3))
    assert readings.effective_rank(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(two_to_one)
    assert readings.effective_rank(torch.zeros(4, 3)) == 1  # no direction stands out, and none is there


def test_shares_are_weights_by_length() -> None:
    """Twice as long counts twice; the sign stays (x00-x04 article)."""
    terms = readings._terms(readings.Sum([torch.ones(3), 2 * torch.ones(3)], [1.0, -0.5], torch.zeros(3)), ["a", "b"])
    assert [(t.name, t.rms, t.share) for t in terms] == [("a", 1.0, 0.5), ("b", 2.0, -0.5)]
    [none] = readings._terms(readings.Sum([torch.ones(3)], [0.0], torch.zeros(3)), ["a"])
    assert none.share is None


def test_values_and_value_embeddings_share_what_attention_mixes() -> None:
    """Own values are normed per head, hence of RMS 1; the embedding counts by its own."""
    cfg = recipe(dtype="float64")
    model, (ids, _) = shaken(cfg), tokens(cfg, 1)
    told = read(Trained(run_config(cfg), 1, model), "run", ids, "drawn", 1, [])
    found = {one["layer"]: one["terms"] for one in told.shares if one["mechanism"] == "value"}
    assert list(found) == sorted(value_table(cfg))
    for layer, (own, embedded) in found.items():
        weights = [told.lambdas.get(f"lambda/value/{layer}/{name}", 1.0) for name in ("v", "ve")]
        assert [own["weight"], embedded["weight"]] == pytest.approx(weights)
        assert own["rms"] == pytest.approx(1, rel=1e-3)
        assert embedded["rms"] == pytest.approx(told.embedding_rms[embedded["name"]])
        total = abs(weights[0]) * own["rms"] + abs(weights[1]) * embedded["rms"]
        assert embedded["share"] == pytest.approx(weights[1] * embedded["rms"] / total)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"ab", "ab"),
        ("é".encode(), "é"),
        (b"\xe2", "<0xE2>"),
        (b"a\xe2\x80b", "a<0xE2><0x80>b"),
        (b"\xff\xc3\xa9", "<0xFF>é"),
    ],
)
def test_bytes_that_are_no_text_are_shown_as_such(content: bytes, text: str) -> None:
    assert text_of(content) == text
    for cut in range(len(content) + 1):  # a token may end amid a character
        stream = TextStream()
        assert stream.add(content[:cut]) + stream.add(content[cut:]) + stream.end() == text


def test_what_does_not_print_is_visible() -> None:
    assert document.visible(" a\n\x00é") == "·a\\n\\x00é"


# ------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> RunDir:
    """Two steps of a small run, inspected at its end."""
    folder = tmp_path_factory.mktemp("inspected")
    return finished(folder, data_root, inspect=True)


def finished(folder: Path, data_root: Path, inspect: bool) -> RunDir:
    record = Record(val_every=2, inspect=inspect)
    config = configuration(folder, data_root, schedule=Trapezoid(steps=2, cooldown=0.5, final=0.1), record=record)
    run = frozen(config)
    assert job.execute(run, Quiet()) == Exit.DONE
    return run


def test_a_run_inspects_itself_at_its_end(trained: RunDir) -> None:
    told = files.read_json(trained.inspection / "inspection.json")
    assert (told["run"], told["step"], told["prompt_source"]) == (trained.name, 2, "start of the validation split")
    assert told == json.loads(json.dumps(asdict(inspect(trained))))
    assert told["lambdas"] == pytest.approx(files.read_json(trained.result)["lambdas"])
    assert not (trained.inspection / "problem.txt").exists()


def test_pictures_stand_alone_and_say_what_they_show(trained: RunDir) -> None:
    for name, words in {
        "tokens": ("token read", "decoded from", "probability of the likeliest next token"),
        "streams": ("root mean square over positions and channels", "layer 2"),
        "contributions": ("part along the output (all sum to 1)", "x00"),
    }.items():
        svg = (trained.inspection / f"{name}.svg").read_text()
        assert all(word in svg for word in (*words, "step 2")), name
        assert "href" not in svg.replace("xmlns:xlink", "")
        assert (trained.inspection / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_inspection_fails_no_run(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no ink\nat all")

    monkeypatch.setattr(writing, "write", fail)
    run = finished(tmp_path, data_root, inspect=True)
    assert run.read_status()["state"] == "done"
    assert (run.inspection / "problem.txt").read_text() == "RuntimeError: no ink\n"


def command(*arguments: str) -> int:
    """`skipsweep inspect`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["skipsweep", "inspect", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def test_the_command(trained: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = (trained.id, "--multirun", str(trained.path.parents[1]), "--out", str(tmp_path / "out"))
    assert command(*here, "--top", "2", "--layers", "2,0", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == files.read_json(tmp_path / "out" / "inspection.json")
    assert [lens["what"] for lens in told["lens"]][:3] == ["layer 0", "layer 2", "output"]
    assert {len(row) for lens in told["lens"] for row in lens["top"]} == {2}
    assert command(*here) == 0
    table = capsys.readouterr().out
    for words in (
        "likeliest next token",
        "root mean square of",
        "after the last token",
        "contributions to the readout",
        "effective rank",
    ):
        assert words in table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--layers", "3"), "--layers: layer 3 is outside the trunk; valid: 0 to 2"),
        (("--layers", "a"), "--layers a; valid: layers with commas between"),
        (("--top", "0"), "--top 0; valid: 1 to "),
        (("--text", "hello"), "data=synthetic has no tokenizer"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], told: str, trained: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(trained.id, "--multirun", str(trained.path.parents[1]), *arguments) == UserError.EXIT_CODE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert told in said.err


def test_a_run_without_weights_is_refused(tmp_path: Path, data_root: Path) -> None:
    run = frozen(configuration(tmp_path, data_root))
    with pytest.raises(UserError, match="has no weights; it is planned"):
        inspect(run)


def test_an_imported_run_has_no_weights_and_that_is_said(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "log-0a")
    run.path.mkdir()
    run.write_status("done", durable=False, imported="old.txt")
    with pytest.raises(UserError, match="log-0a was imported from a log, which has no weights"):
        inspect(run)


def test_no_training_loads_what_draws() -> None:
    code = "import sys; import skipsweep.job; assert not {'altair', 'vl_convert'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_text_is_read_from_the_end_of_text_on(trained: RunDir) -> None:
    from skipsweep.inspection.inspect import _prompt

    config = trained.read_config()
    config = replace(config, data=replace(config.data, tokenizer="bytes", vocab_size=257))
    ids, _ = _prompt(config, "é")
    assert ids.tolist() == [[256, 0xC3, 0xA9]]
    with pytest.raises(UserError, match="has 17 tokens, the opening end-of-text included; valid: at most 16"):
        _prompt(config, "a" * 16)
    assert _prompt(config, "")[0].tolist() == [[256]]
    with pytest.raises(UserError, match=r"--text '\\udcff' is not UTF-8"):
        _prompt(config, "\udcff")
