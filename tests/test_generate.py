"""Texts token by token: the same numbers as from the whole text, no keys of closed tokens, and the command."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_recipes import ARMS, DOCUMENTS, EMBEDDINGS, EOT, OWNERS, SMALL_TRACK, randomised, recipe, shaken, tokens
from runs import Quiet, configuration, frozen
from torch import Tensor

from skipsweep import cli, config, job
from skipsweep.config import Embeddings, Free, Residual, RunConfig
from skipsweep.errors import UserError
from skipsweep.exit_status import Exit
from skipsweep.generation import command, generate
from skipsweep.generation.sampling import Sampler, Sampling
from skipsweep.model import decode
from skipsweep.model.decode import Decoder, KVCache
from skipsweep.model.gpt import GPT
from skipsweep.rundir import RunDir
from skipsweep.trained import Trained

EXACT = 1e-11
KEYS, QUERIES, NONE = (Free(init="normal", attention=axis, floor=1e-6) for axis in ("keys", "queries", "none"))
LLAMA: dict[str, Any] = {"plain": True, "block": "llama", "norm_scheme": "sandwich", "layers": 6, "kv_heads": 1}
SIX: dict[str, Any] = {"layers": 6}
YARN = {"yarn": True, "window_growth": "stages", "window_stages": [2, 3]}
CASES: dict[str, tuple[Any, ...]] = {
    **{f"{head} {list(sources)}": (head, sources, {}, None) for head, sources in ARMS},
    **{f"{head} widened": (head, (0, "extra"), {"widen_head": True}, None) for head in OWNERS},
    "documents": ("add", (0, 2), DOCUMENTS | {"max_document": 7}, None),
    "rolling": ("concat", (0, "extra"), {"residual": Residual(unet=[[0, 2]], rolling=True)}, None),
    "parallel tail": ("last", (), {"residual": Residual(unet=[[0, 2]], parallel_tail=2)}, None),
    "x04": ("last", (), {"embeddings": Embeddings(mix=True, extra=4, value_layers=[[0, 3]])}, None),
    "small track": ("backout", (0,), SMALL_TRACK | YARN, None),
    "llama": ("add", (0, 2), LLAMA | {"norm_scheme": "pre", "kv_heads": 2}, None),
    "gates": ("add", (0, 2, "input"), SIX | {"residual": Residual(unet=[[0, 3]])}, KEYS),
    "gates, documents": ("concat", (0, 2), SIX | DOCUMENTS, KEYS),
    "gates, rolling": ("concat", (0, "extra"), SIX | {"residual": Residual(rolling=True)}, KEYS),
    "gates, tail": ("backout", (0,), SIX | {"residual": Residual(parallel_tail=2), "smeared": True}, KEYS),
    "gates, llama": ("last", (), LLAMA, KEYS),
    "gates, llama, values": ("last", (), LLAMA | {"kv_heads": 2, "embeddings": EMBEDDINGS, "value_lambda": True}, KEYS),
    "gates, others see": ("last", (), LLAMA, NONE),
    "gates, on queries": ("last", (), LLAMA, QUERIES),
}


def model_of(case: str) -> tuple[GPT, RunConfig, Tensor]:
    """A float64 model for evaluation, and a text (1, 24)."""
    head, sources, changes, gates = CASES[case]
    cfg = recipe(head, sources, **{"seq_len": 24, "dtype": "float64"} | changes)
    if gates is not None:
        cfg = replace(cfg, gate_targets=gates)
    model, (ids, _) = (randomised if gates else shaken)(cfg), tokens(cfg, 1)
    if cfg.data.tokenizer != "none":
        ids[0, 5] = ids[0, 6] = ids[0, 20] = EOT
    return model.eval(), RunConfig(**vars(cfg), logger=None), ids  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- numbers


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_piece_by_piece_is_the_whole_text(case: str) -> None:
    """For every mechanism, with and without a window: a prompt, single tokens, and several at once."""
    model, _, ids = model_of(case)
    for window in (0, 3):
        decoder = Decoder(model, 24, window)
        pieces = [decoder.features(piece) for piece in ids.split([7, *[1] * 12, 5], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model.features(ids, window, skip=True), rtol=0, atol=EXACT)


@torch.no_grad()
@pytest.mark.parametrize("case", ["gates", "gates, documents", "gates, llama", "concat [2]"])
def test_the_likeliest_text_is_that_of_full_recomputation(case: str) -> None:
    model, run, ids = model_of(case)
    prompt, given = ids[:, :5], Trained(run, 1, model)
    found = list(generate.generate(given, prompt, 19, Sampling(temperature=0)))
    text = prompt
    for one in found:
        logits = model.logits(text, given.window)[0, -1]
        assert one.id == int(logits[: run.data.vocab_size].argmax())
        assert one.p == pytest.approx(float(logits[: run.data.vocab_size].softmax(0).max()), rel=1e-10)
        text = torch.cat((text, torch.tensor([[one.id]])), 1)


@torch.no_grad()
def test_long_prompts_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, ids = model_of("gates, documents")
    monkeypatch.setattr(decode, "CHUNK", 4)
    torch.testing.assert_close(Decoder(model, 24, 2).features(ids), model.features(ids, 2), rtol=0, atol=EXACT)


# ----------------------------------------------------------------------------------------------------- keys and values


@torch.no_grad()
@pytest.mark.parametrize("case", ["gates", "gates, llama"])
def test_closed_tokens_leave_no_keys(case: str) -> None:
    """In every block just the open ones are cached; where others look at closed keys, all."""
    model, _, ids = model_of(case)
    opened: list[int] = []
    model.gate.register_forward_hook(lambda _m, _a, g: opened.append(int((g > 0).sum())))
    model.features(ids)
    decoder = Decoder(model, 24)
    for piece in ids.split([10, *[1] * 14], 1):
        decoder.features(piece)
    attended = [block.attention is not None for block in model.blocks]  # type: ignore[union-attr]
    assert [len(cache) for cache in decoder.caches] == [n * a for n, a in zip(opened[:6], attended, strict=True)]
    assert min(opened) < 24


@torch.no_grad()
def test_what_no_later_token_sees_is_evicted() -> None:
    """Windows of 2 and 1 blocks of 2 tokens, documents of 7; one that has ended."""
    model, _, ids = model_of("documents")
    ids[:] = 1
    decoder = Decoder(model, 24, 2)
    decoder.features(ids[:, :20])
    assert [len(cache) for cache in decoder.caches] == [4, 0, 2, 4]
    ids[0, 20] = EOT
    decoder.features(ids[:, 20:21])
    assert [len(cache) for cache in decoder.caches] == [1, 0, 1, 1]


def test_what_is_cached_is_rarely_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """64, 128, 256, ... places: all that came before is not moved for every token."""
    moved, make_room = list[int](), KVCache._make_room
    monkeypatch.setattr(KVCache, "_make_room", lambda *given: (moved.append(1), make_room(*given)))
    cache, new = KVCache(), torch.ones(1, 2, 1, 4)
    for t in range(300):
        keys, _, places = cache.add(new * t, new, torch.tensor([t]))
        if t == 50:
            cache.evict(20)
    assert len(cache) == 280
    assert places.tolist() == keys[0, 1, :, 3].tolist() == list(range(20, 300))
    assert sum(moved) <= 4


def test_a_text_has_room_for_what_it_was_promised() -> None:
    model, _, ids = model_of("gates")
    with pytest.raises(ValueError, match="0 \\+ 24 tokens, but room for 20"):
        Decoder(model, 20).features(ids)


# ------------------------------------------------------------------------------------------------------------- sampling


def test_draws_follow_the_probabilities_and_rows_without_a_token_are_never_drawn() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 50.0])
    sampler = Sampler(Sampling(temperature=2.0), vocabulary=3)
    drawn = [sampler.draw(logits) for _ in range(3000)]
    wanted = (logits[:3] / 2).softmax(0)
    for i in range(3):
        assert sum(one == i for one, _ in drawn) / 3000 == pytest.approx(wanted[i].item(), abs=0.03)
    assert {round(p, 5) for _, p in drawn} == {round(p, 5) for p in wanted.tolist()}


def test_top_k_keeps_the_likeliest_and_their_equals() -> None:
    sampler = Sampler(Sampling(top_k=2), vocabulary=4)
    drawn = {sampler.draw(torch.tensor([2.0, 3.0, 2.0, 0.0]))[0] for _ in range(100)}
    assert drawn == {0, 1, 2}
    assert {Sampler(Sampling(top_k=1, seed=s), 4).draw(torch.tensor([2.0, 3.0, 2.0, 0.0]))[0] for s in range(20)} == {1}


def test_seeds() -> None:
    def text(seed: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), 32)
        return [sampler.draw(torch.zeros(32))[0] for _ in range(10)]

    assert text(0) == text(0) != text(1)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> RunDir:
    """Two steps of a small gated run on bytes."""
    folder = tmp_path_factory.mktemp("generating")
    (folder / "text.txt").write_text("the cat sat on the mat, and the dog on the log. " * 60)
    base = configuration(folder, data_root)
    data = config.Text(path=str(folder / "text.txt"), tokenizer="bytes", seq_len=32, batch_tokens=64, val_tokens=64)
    run = frozen(
        replace(
            base,
            model=replace(base.model, layers=4, long_window=[0, 3]),
            gate_targets=Free(init="open", bias=-0.01, attention="keys", floor=1e-6),
            data=replace(data, order="shuffled"),
            schedule=config.Constant(steps=2),
            compute=config.Compute(micro_batch=1, threads=1),
        )
    )
    assert job.execute(run, Quiet()) == Exit.DONE
    return run


def skipsweep(*arguments: str) -> int:
    """`skipsweep generate`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["skipsweep", "generate", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def place(run: RunDir) -> tuple[str, ...]:
    return (run.id, "--multirun", str(run.path.parents[1]))


def test_json_and_text_say_the_same(trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = (*place(trained), "--text", "the ", "--tokens", "9", "--seed", "3", "--no-stop", "--top-k", "128")
    assert skipsweep(*wanted, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["step"], told["prompt"], told["ended"]) == (trained.name, 2, "the ", "tokens")
    assert len(told["tokens"]) == 9
    assert told["skipped"]
    assert len(told["closed"]) == 4
    assert all(0 <= share <= 1 for share in told["closed"])
    assert skipsweep(*wanted) == 0
    said = capsys.readouterr()
    assert said.out == "the " + "".join(command._harmless(told["text"])) + "\n"
    assert said.err.startswith(f"{trained.name}, step 2: 9 tokens in ")
    assert "blocks closed to" in said.err


def test_it_fills_what_fits_and_ends_with_the_document(trained: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 tokens, an end-of-text and 4 of the prompt among them."""
    assert len(command.run(trained, "the ", None, Sampling(), False, "cpu").tokens) == 27
    draws = iter([(0x41, 0.5), (0xC3, 0.5), (256, 0.25)])
    monkeypatch.setattr(Sampler, "draw", lambda *_: next(draws))
    parts: list[str] = []
    found = command.run(trained, "the ", 10, Sampling(), True, "cpu", parts.append)
    assert found.text == "".join(parts) == "A<0xC3>"
    assert [(one.id, one.text) for one in found.tokens] == [(0x41, "A"), (0xC3, "<0xC3>"), (256, "<|endoftext|>")]
    assert found.ended == "end of text"


def test_a_terminal_obeys_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    say = command.teller("a")
    say("\x1b[2J\n")
    say("\t\x9bé")
    assert capsys.readouterr().out == "a<0x1B>[2J\n\t<0x9B>é"


MISTAKES = {
    ("--text", "\udcff"): r"--text '\udcff' is not UTF-8",
    ("--text", "a" * 40): "--text has 41 tokens, the opening end-of-text included; valid: at most 32",
    ("--text", "a" * 31): "--text fills all 32 tokens that the model was made for; valid: a shorter text",
    ("--text", "a", "--tokens", "31"): "--tokens 31; valid: 1 to 30, which with the prompt's 2 make",
    ("--text", "a", "--tokens", "0"): "--tokens 0; valid: 1 to 30",
    ("--text", "a", "--temperature", "-1"): "--temperature -1; valid: 0",
    ("--text", "a", "--temperature", "nan"): "--temperature nan; valid: 0",
    ("--text", "a", "--top-k", "300"): "--top-k 300; valid: 0 (all) to 257",
    ("--text", "a", "--seed", "-1"): "--seed -1; valid: 0 to ",
    ("--text", "a", "--device", "tpu"): "--device tpu; valid: cpu, cuda",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line(arguments: tuple[str, ...], trained: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert skipsweep(*place(trained), *arguments) == UserError.EXIT_CODE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"error: {MISTAKES[arguments]}")


def test_runs_without_weights_or_text_are_refused(
    tmp_path: Path, data_root: Path, trained: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = frozen(configuration(tmp_path, data_root, data=trained.read_config().data))
    synthetic = frozen(configuration(tmp_path, data_root))
    imported = RunDir(planned.path.parent / "log-0a")
    imported.path.mkdir()
    imported.write_status("done", durable=False, imported="old.txt")
    for run, why in (
        (planned.id, "has no weights; it is planned"),
        (synthetic.id, "data=synthetic has no tokenizer; valid: a run on text"),
        ("log-0a", "log-0a was imported from a log, which has no weights"),
        ("nobody", "no run nobody below"),
    ):
        assert skipsweep(run, "--multirun", str(tmp_path), "--text", "a") == UserError.EXIT_CODE
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert why in said.err


def test_closed_blocks_are_counted_layer_by_layer() -> None:
    """Opposite layers have one gate; five tokens of the prompt, and two that were read after it."""
    model, run, ids = model_of("gates")
    closed = generate.ClosedCounter()
    list(generate.generate(Trained(run, 1, model), ids[:, :5], 3, Sampling(), closed=closed))
    assert closed.tokens == 7
    shares = closed.shares()
    assert len(shares) == 6
    assert shares[2] == shares[3] > shares[0] == shares[5]
    assert model.gate.observer is None
