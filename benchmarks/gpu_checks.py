"""Sections of gpu.py that say whether the GPU path computes what it should.

Legend: B batch, T time, D dim, H heads, K channels of a head, V rows of the head.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, Any
from unittest import mock

import shipped
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipsweep.config import RunConfig
from skipsweep.distributed import World
from skipsweep.model import head as heads
from skipsweep.model.attention import FLEX_BLOCK, ChunkedMask, attend, block_mask
from skipsweep.model.gpt import GPT, build
from skipsweep.model.init import parameter_roles
from skipsweep.optim.optimiser import Optimiser
from skipsweep.train import NonFinite, Trainer

if TYPE_CHECKING:
    from gpu import Report


# ------------------------------------------------------------------------------------------------------------ utilities


@contextmanager
def compiler(device: str) -> Iterator[None]:
    """Compile on a GPU, and fail where the compiler would silently give up.

    On a CPU: trace only (`backend="eager"`), but trace what a GPU would run, FlexAttention included, so that graphs can
    be counted without one.
    """
    from torch.nn.attention import flex_attention

    plain = torch.compile
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
        if device == "cpu":
            traced = mock.patch.object(torch, "compile", lambda f, **how: plain(f, **{**how, "backend": "eager"}))
            stack.enter_context(traced)
            stack.enter_context(mock.patch("skipsweep.model.context.uses_flex", _always))
            # it refuses to be differentiated on a CPU, where its own kernel has no backward pass
            stack.enter_context(mock.patch.object(flex_attention, "_validate_device", _always))
        yield


def _always(*_: Any) -> bool:
    """A function, no Mock: the compiler has to look into it."""
    return True


def counters() -> Mapping[str, Mapping[str, int]]:
    """What the compiler has counted in this process."""
    from torch._dynamo.utils import counters

    return counters


def graphs() -> int:
    """Graphs compiled so far."""
    return counters()["stats"].get("unique_graphs", 0)


def shaken(model: GPT) -> GPT:
    """Every parameter moved, as a function of its shape and place: zeros and ones would hide what they multiply."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = 0.3 if name.endswith("lambdas.weight") else p.shape[-1] ** -0.5
            p.add_((torch.randn(p.shape, generator=source) * spread).to(p))
    return model


def error(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|."""
    wanted = wanted.double().cpu()
    return float((found.double().cpu() - wanted).norm() / wanted.norm().clamp_min(1e-30))


def joint(tensors: Mapping[str, Tensor]) -> Tensor:
    """All of them in one vector, by name."""
    return torch.cat([tensors[name].detach().double().cpu().flatten() for name in sorted(tensors)])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def little_run(device: str, head: str = "add", also: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A small run, of a kind that the device's fast path takes. `also`: dotted keys."""
    seq_len = changes.pop("seq_len", 4096 if device == "cuda" else 256)
    sizes = shipped.NARROW if device == "cuda" else shipped.NARROW | {"layers": 4, "dim": 64}
    return shipped.run("medium", head, device, shipped.little(sizes, seq_len, **changes, **(also or {})))


def little_trainer(config: RunConfig, device: str, compiled: bool) -> Trainer:
    config = replace(config, compute=replace(config.compute, micro_batch=1, compile=compiled))
    return Trainer(config, shipped.RandomText(config), World(device=torch.device(device)))


def text(config: RunConfig, device: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets (1, T)."""
    ids, targets = (torch.from_numpy(a[:1]).to(device) for a in shipped.RandomText(config).train(0))
    return ids, targets


# ------------------------------------------------------------------------------------------------------------ attention

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative error against float64: float32 rounds at 6e-8, bfloat16 at 4e-3, and sums and softmax add to it."""


def dense(q: Tensor, k: Tensor, v: Tensor, docs: Tensor, window: int, block: int, scale: float) -> Tensor:
    """Attention written plainly, on the whole square."""
    t = torch.arange(q.shape[2])
    near = (t[:, None] // block - t // block < window) if window else torch.ones(len(t), len(t), dtype=torch.bool)
    sees = (t[:, None] >= t) & near & (docs[:, None, :, None] == docs[:, None, None, :])
    return (q @ k.mT * scale).masked_fill(~sees, float("-inf")).softmax(-1) @ v


def attention(report: "Report", device: str) -> None:
    """FlexAttention (on a CPU: what stands for it there) and the masks by chunks, against the plain formula."""
    lengths = {torch.float32: (384, 1152), torch.bfloat16: (1152, 4096)}
    if report.quick:
        lengths = {torch.float32: (384,), torch.bfloat16: (384,)}
    kinds = ("chunks", "flex") if device == "cuda" else ("chunks",)
    for dtype, sizes in lengths.items():
        for kind in kinds:
            with report.guarded(f"{kind} in {dtype}"):
                _compare(report, device, kind, dtype, sizes)


def _compare(report: "Report", device: str, kind: str, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    """The largest errors over lengths, windows and documents."""
    cases = [(t, w, ends) for t in lengths for w in (0, 1, 3, 7, 27) for ends in ((), (1, 200, 201, 256, t - 1))]
    forward, backward = {}, {}
    for case in cases:
        forward[case], backward[case] = _errors(device, kind, dtype, *case)
    for what, errors in (("output", forward), ("gradients", backward)):
        worst = max(errors, key=errors.__getitem__)
        note = f"{len(cases)} cases; worst: {worst[0]} tokens, window {worst[1]}, {len(worst[2]) + 1} documents"
        report.check(f"{kind} against float64, {what}, {dtype}", errors[worst], LIMITS[dtype], note)


def _errors(
    device: str, kind: str, dtype: torch.dtype, length: int, window: int, ends: tuple[int, ...]
) -> tuple[float, float]:
    """Relative errors of output and gradients."""
    source = torch.Generator().manual_seed(length + window)
    shape = (1, 2, length, 128)
    drawn = [torch.randn(shape, generator=source).to(dtype).double() for _ in range(4)]
    docs = torch.zeros(1, length, dtype=torch.int32)
    docs[0, list(ends)] = 1
    docs = docs.cumsum(-1, dtype=torch.int32)
    wanted = _with_gradients(drawn, lambda q, k, v: dense(q, k, v, docs, window, FLEX_BLOCK, 0.12))
    on_device = docs.to(device)
    if kind == "flex":
        mask = block_mask(on_device, window, FLEX_BLOCK)
    else:
        mask = ChunkedMask(length, on_device, window, FLEX_BLOCK)
    given = [x.to(device, dtype) for x in drawn]
    found = _with_gradients(given, lambda q, k, v: attend(q, k, v, mask, 0.12))
    return error(found[0], wanted[0]), error(torch.stack(found[1:]), torch.stack(wanted[1:]))


def _with_gradients(given: list[Tensor], function: Callable[..., Tensor]) -> list[Tensor]:
    """[output, gradients of q, k, v] for the last of `given` as the gradient of the output."""
    operands = [x.detach().requires_grad_() for x in given[:3]]
    out = function(*operands)
    return [out.detach(), *torch.autograd.grad(out, operands, given[3])]


# --------------------------------------------------------------------------------------------------------------- blocks


def blocks(report: "Report", device: str) -> None:
    """The whole model: compiled against uncompiled, and on this device against the CPU; nothing compiled twice."""
    with report.guarded("float32 against the CPU"):
        _against_cpu(report, device)
    with report.guarded("compiled against uncompiled"):
        _compiled_against_uncompiled(report, device)
    with report.guarded("recompilation"):
        _recompilation(report, device)


def _pass(model: GPT, config: RunConfig, device: str, window: int = 3) -> tuple[Tensor, Tensor]:
    """Losses per token and the whole gradient."""
    losses = model(*text(config, device), reduction="none", window=window)
    model.zero_grad()
    losses.mean().backward()
    return losses.detach().double().cpu(), joint(gradients(model))


def _against_cpu(report: "Report", device: str) -> None:
    """Float32, so that only the kernels differ; TF32 is off."""
    config = little_run(device, seq_len=1024 if device == "cuda" else 256, dtype="float32")
    here, there = (_pass(shaken(build(config, where)), config, where) for where in (device, "cpu"))
    report.check(
        "losses per token against the CPU, float32", float((here[0] - there[0]).abs().max()), 1e-4, "nats, largest"
    )
    report.check("gradient against the CPU, float32", error(here[1], there[1]), 1e-4)


def _compiled_against_uncompiled(report: "Report", device: str) -> None:
    """In float32 they agree; in bfloat16 compiled code may round elsewhere, but not worse."""
    exact = little_run(device, seq_len=1024 if device == "cuda" else 256, dtype="float32")
    plain = shaken(build(exact, device))
    with compiler(device):
        found, wanted = (_pass(model, exact, device) for model in (_compiled(plain, exact, device), plain))
    report.check("compiled in float32: losses per token", float((found[0] - wanted[0]).abs().max()), 1e-4, "nats")
    report.check("compiled in float32: gradient", error(found[1], wanted[1]), 1e-4)

    config = little_run(device)
    plain = shaken(build(config, device))
    wanted = _pass(_widened(plain, config, device), config, device)
    with compiler(device):
        compiled = _compiled(plain, config, device)
        off = [_off(_pass(model, config, device), wanted) for model in (plain, compiled)]
        losses = _pass(compiled, config, device)[0]
        training = float(compiled(*text(config, device), window=3).detach())
    for k, what in enumerate(("losses per token", "gradient")):
        report.measured(f"uncompiled in bfloat16 against float32: {what}", f"{off[0][k]:.3g}", "relative")
        limit = off[0][k] * 4 / 3 + 0.005
        report.check(f"compiled in bfloat16 against float32: {what}", off[1][k], limit, "a third more, and 0.005")
    report.check("compiled: loss as training computes it", abs(training - float(losses.mean())), 1e-3, "nats")


def _compiled(model: GPT, config: RunConfig, device: str) -> GPT:
    """The same numbers, compiled as training compiles them."""
    made = build(config, device)
    made.load_state_dict(model.state_dict())
    made.compile_parts()
    return made


def _off(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> tuple[float, float]:
    return error(found[0], wanted[0]), error(found[1], wanted[1])


def _widened(model: GPT, config: RunConfig, device: str) -> GPT:
    """The same numbers in float32."""
    wide = build(replace(config, model=replace(config.model, dtype="float32")), device)
    wide.load_state_dict(model.state_dict())
    return wide


def _recompilation(report: "Report", device: str) -> None:
    """Graphs that are compiled after the first step and validation, and for further arms."""
    with compiler(device):
        before, breaks = graphs(), dict(counters()["graph_break"])
        first = little_trainer(little_run(device), device, compiled=True)
        counts, windows = [], set()
        for boundary in first.run():
            counts.append(graphs())
            windows.add(first._window(boundary.step))
        report.measured("graphs of one arm", str(counts[-1] - before))
        again = counts[-1] - counts[1]
        report.check("compiled again after the first step", again, 0, f"{len(counts) - 1} steps, windows {windows}")
        broken = {why: n for why, n in counters()["graph_break"].items() if breaks.get(why) != n}
        report.check("breaks in the graphs", len(broken), 0, "; ".join(w.splitlines()[0] for w in broken))
        for head, skip in (("add", [0]), ("last", []), ("concat", [0])):
            count = graphs()
            arm = little_run(device, head, also={"schedule.steps": 1, "skip_layers.layers": skip})
            for _ in little_trainer(arm, device, compiled=True).run():
                pass
            report.check(f"compiled for another arm, {head}", graphs() - count, 0)


# ----------------------------------------------------------------------------------------------------------------- loss


def loss(report: "Report", device: str) -> None:
    """The head's loss, by pieces and with its gradients made at once, against F.cross_entropy."""
    rows, width, tokens = (50_304, 256, 6_000) if device == "cuda" else (640, 16, 300)
    whole = heads.MAX_LOGITS | {"cpu": rows * 128}  # several pieces on a CPU too
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        for compiled in (False, True):
            with report.guarded(f"loss in {dtype}"), compiler(device), mock.patch.object(heads, "MAX_LOGITS", whole):
                worst = _loss_errors(device, dtype, compiled, (rows, width, tokens))
                how = "compiled" if compiled else "uncompiled"
                report.check(f"loss and its gradients, {dtype}, {how}", worst, limit, "relative, the largest")
    if device == "cuda":
        with report.guarded("memory of the loss"):
            _loss_memory(report)


def _loss_errors(device: str, dtype: torch.dtype, compiled: bool, sizes: tuple[int, int, int]) -> float:
    rows, width, tokens = sizes
    source = torch.Generator().manual_seed(1)
    features = torch.randn((1, tokens, width), generator=source).to(device, dtype).requires_grad_()
    targets = torch.randint(rows, (1, tokens), generator=source).to(device)
    head = heads.Head(width, rows, 15.0, dtype).to(device)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=source) * 0.2)
    if compiled:
        head.compile_kernel()
    ours = head.loss(features, targets, "mean")
    found = [ours.detach(), *torch.autograd.grad(ours, [features, head.weight])]
    wide, weight = features.detach().double(), head.weight.detach().to(dtype).double()
    operands = [wide.requires_grad_(), weight.requires_grad_()]
    logits = F.linear(*operands)
    logits = 15 * logits / (logits.square() + 15**2).sqrt()
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    wanted = [plain.detach(), *torch.autograd.grad(plain, operands)]
    return max(error(a, b) for a, b in zip(found, wanted, strict=True))


def _loss_memory(report: "Report") -> None:
    """65,536 tokens of the medium head: their logits in float32 have 13.2 GB."""
    head = heads.Head(1024, 50_304, 15.0, torch.bfloat16).to("cuda")
    nn.init.normal_(head.weight, std=0.02)
    head.compile_kernel()
    features = torch.randn((1, 65_536, 1024), device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(50_257, (1, 65_536), device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    head.loss(features, targets, "mean").backward()
    used = (torch.cuda.max_memory_allocated() - before) / 1e9
    report.check("memory of loss and gradients, 65,536 tokens, GB", used, 6.0, "logits whole in float32: 13.2")


# ------------------------------------------------------------------------------------------------------------ optimiser


def optimiser(report: "Report", device: str) -> None:
    """Muon, Adam and the outer optimiser: on this device against the CPU; halted updates."""
    for compiled in (False, True):
        how = "compiled" if compiled else "uncompiled"
        with report.guarded(f"optimiser {how}"), compiler(device):
            here, there = _stepped(device, compiled), _stepped("cpu", False)
            report.check(f"parameters after 3 steps against the CPU, {how}", error(here, there), 1e-5, "float32")
    with report.guarded("halted update"):
        _halted_update(report, device)


def _optimiser(device: str, compiled: bool, dtype: str = "float32") -> tuple[GPT, Optimiser]:
    config = shipped.run("medium", "add", device, shipped.little(shipped.TINY, 128, dtype=dtype))
    model = shaken(build(config, device))
    world = World(device=torch.device(device))
    return model, Optimiser(config.optim, dict(model.named_parameters()), parameter_roles(model), world, compiled)


def _stepped(device: str, compiled: bool) -> Tensor:
    """Movement of all parameters in three steps on given gradients; the outer optimiser moves in the first."""
    model, made = _optimiser(device, compiled)
    start = joint(dict(model.named_parameters()))
    for step in range(3):
        made.backward(_loss_with_random_gradients(model, step), last=True)
        made.step(step, 1.0, torch.zeros((), device=device))
    return joint(dict(model.named_parameters())) - start


def _loss_with_random_gradients(model: GPT, step: int, factor: float = 1.0) -> Tensor:
    source = torch.Generator().manual_seed(100 + step)
    terms = [
        (p * torch.randn(p.shape, generator=source).to(p)).sum() * (factor * p.numel() ** -0.5)
        for p in model.parameters()
    ]
    return torch.stack([term.float() for term in terms]).sum()


def _halted_update(report: "Report", device: str) -> None:
    """Gradients that are not finite, and an update that is masked for it."""
    model, made = _optimiser(device, compiled=False, dtype="bfloat16")
    made.backward(_loss_with_random_gradients(model, 0), last=True)
    made.step(0, 1.0, torch.zeros((), device=device))
    before = [{n: t.detach().clone() for n, t in d.items()} for d in (dict(model.named_parameters()), made.state())]
    made.backward(_loss_with_random_gradients(model, 1, factor=float("nan")), last=True)
    report.holds("the gradient's norm is NaN", not torch.isfinite(made.grad_norm()).item())
    made.step(28, 1.0, torch.ones((), device=device))  # the outer optimiser's turn too
    report.holds("a masked update leaves parameters alone", equal(dict(model.named_parameters()), before[0]))
    report.holds("a masked update leaves the optimiser's state alone", equal(made.state(), before[1]))


# -------------------------------------------------------------------------------------------------------------- trainer


def trainer(report: "Report", device: str) -> None:
    """Warm-up, resuming, stopping, and waiting for the device, of the whole training loop."""
    compiled = device == "cuda"
    with report.guarded("warm-up"):
        made = little_trainer(little_run(device), device, compiled)
        before = _state(made)
        made._warm_up()
        report.holds("warm-up leaves parameters and state alone", equal(_state(made), before))
        if device == "cuda":
            _no_waiting(report, made)
    with report.guarded("resume"):
        _resume(report, device, compiled)
    with report.guarded("guard"):
        _guard(report, device, compiled)


def _state(made: Trainer) -> dict[str, Tensor]:
    state = made.state()
    return {f"{part}/{n}": t.detach().clone() for part in ("model", "optim") for n, t in state[part].items()}


def _no_waiting(report: "Report", made: Trainer) -> None:
    """Three updates during which the host must not wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            made._update()
        report.holds("the host never waits within a step", True)
    except RuntimeError as problem:
        ours = [frame for frame in extract_tb(problem.__traceback__) if "skipsweep" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        report.holds("the host never waits within a step", False, f"{place}: {problem}".splitlines()[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _resume(report: "Report", device: str, compiled: bool) -> None:
    """6 steps at once, and 3 and 3 with a new trainer between."""
    config = little_run(device, also={"schedule.steps": 6})
    straight = little_trainer(config, device, compiled)
    losses = [b.train_loss for b in straight.run()]
    first = little_trainer(config, device, compiled)
    for boundary in first.run():
        if boundary.step == 3:
            break
    state = first.state()
    kept = {**state, **{part: {n: t.detach().clone() for n, t in state[part].items()} for part in ("model", "optim")}}
    second = little_trainer(config, device, compiled)
    second.load_state(kept)
    resumed = [b.train_loss for b in second.run()]
    pairs = list(zip(losses[-3:], resumed, strict=True))
    same = all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
    report.holds("losses after a resume are the same bits", same)
    report.holds("the state after a resume is the same bits", equal(_state(second), _state(straight)))


def _guard(report: "Report", device: str, compiled: bool) -> None:
    """A loss that is NaN from the third step on: the run stops, and keeps its last good parameters."""
    made = little_trainer(little_run(device, also={"schedule.steps": 20}), device, compiled)
    original, good = made._backward, {}

    def poisoned(step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        loss, *others = original(step)
        return loss * float("nan"), *others

    stopped = -1
    try:
        for boundary in made.run():
            if boundary.step == 2:
                good = {n: p.detach().clone() for n, p in made.model.named_parameters()}
                made._backward = poisoned
    except NonFinite as problem:
        stopped = problem.step
    report.holds("a loss that is not finite stops the run", stopped == 3, f"said to be step {stopped}, is 3")
    report.holds("and the last good parameters remain", equal(dict(made.model.named_parameters()), good))


SECTIONS: dict[str, Callable[["Report", str], None]] = {
    "attention": attention,
    "blocks": blocks,
    "loss": loss,
    "optimiser": optimiser,
    "trainer": trainer,
}
