"""Sections of gpu.py about gates over layers: whether attention that sees them, skipping and cached keys are right
there, and what skipping costs.

Legend: B batch, T time, H heads, K channels of a head.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import skipping
import torch
from gpu_checks import LIMITS, error, little_run, shaken, text
from torch import Tensor

from skipsweep.config import Free, RunConfig
from skipsweep.model.attention import FLEX_BLOCK, ChunkedMask, attend_layer, block_mask
from skipsweep.model.decode import Decoder
from skipsweep.model.gpt import GPT, build
from skipsweep.model.seams import LayerContext

if TYPE_CHECKING:
    from gpu import Report

KEYS = Free(init="normal", attention="keys", floor=1e-6)
SCALE, WIDTH = 0.12, 128


def gated_run(device: str, **changes: Any) -> RunConfig:
    """A small model of the medium track with gates."""
    return replace(little_run(device, dtype="float32", **changes), gate_targets=KEYS)


GRADED = ("output", "gradients of q, k, v", "gradient of the gates")
"""What is compared, at evaluation the first alone."""


def gates(report: "Report", device: str) -> None:
    """FlexAttention (on a CPU: what stands for it there) with gates on the keys against equation 3; blocks of open
    tokens alone against masks; a text piece by piece against the whole of it."""
    for dtype in LIMITS:
        for training in (True, False):
            when = "training" if training else "evaluation"
            with report.guarded(f"gated keys, {when}, {dtype}"):
                worst = _worst(device, dtype, training, 384 if report.quick else 1152)
                for what, off in list(zip(GRADED, worst, strict=True))[: None if training else 1]:
                    report.check(f"gated keys, {when}, {what}, {dtype}", off, LIMITS[dtype])
    with report.guarded("skipping against masks"), torch.no_grad():
        _skipping_against_masks(report, device)
    with report.guarded("cached keys against the whole text"), torch.no_grad():
        _pieces_against_whole(report, device)


def _worst(device: str, dtype: torch.dtype, training: bool, length: int) -> list[float]:
    """Relative errors, the largest over windows and documents."""
    found = [_errors(device, dtype, training, length, w, ends) for w in (0, 3) for ends in ((), (200, 201))]
    return [max(column) for column in zip(*found, strict=True)]


def _errors(
    device: str, dtype: torch.dtype, training: bool, length: int, window: int, ends: tuple[int, ...]
) -> list[float]:
    source = torch.Generator().manual_seed(length + window)
    q, k, v, out = (
        torch.randn((1, 2, length, WIDTH), generator=source).to(dtype).double().requires_grad_() for _ in range(4)
    )
    g = (torch.rand((1, length, 1), generator=source) * 1.5 - 0.25).clamp(0, 1).double().requires_grad_()
    docs = torch.zeros(1, length, dtype=torch.int32)
    docs[0, list(ends)] = 1
    docs = docs.cumsum(-1, dtype=torch.int32)
    # Of a query that is closed itself, which may see closed keys only, a factor of 0 takes out what attention says.
    out = (out * (g > 0)[:, None]).detach()
    sees = ChunkedMask(length, docs, window, FLEX_BLOCK)
    wanted = _gradients(_equation_3(q, k, v, g, sees, training), (q, k, v, g), out)
    near = [x.detach().to(device, dtype).requires_grad_() for x in (q, k, v)]
    near.append(g.detach().float().to(device).requires_grad_())
    found = _gradients(_ours(*near, docs.to(device), window, training), near, out.to(device, dtype))
    opened = (g > 0)[:, None].to(device)
    output = error(found[0] * opened, wanted[0] * opened.cpu())
    return [output, error(torch.stack(found[1:4]), torch.stack(wanted[1:4])), error(found[4], wanted[4])]


def _equation_3(q: Tensor, k: Tensor, v: Tensor, g: Tensor, sees: ChunkedMask, training: bool) -> Tensor:
    """Softmax weights times the key's gate, which is the floor at least while training, written plainly."""
    t = torch.arange(q.shape[2])
    weights = (q @ k.mT * SCALE).exp() * sees.sees(t, t) * g.mT[:, None].clamp(min=KEYS.floor if training else 0.0)
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def _ours(q: Tensor, k: Tensor, v: Tensor, g: Tensor, docs: Tensor, window: int, training: bool) -> Tensor:
    device = q.device.type
    seam = build(gated_run(device), "meta").gate.train(training)
    mask = (
        block_mask(docs, window, FLEX_BLOCK) if device == "cuda" else ChunkedMask(q.shape[2], docs, window, FLEX_BLOCK)
    )
    none = torch.zeros(0, device=q.device)
    layer = seam.bias_attention(LayerContext((none, none), mask, None, None, None), g)
    return attend_layer(q, k, v, layer, SCALE)


def _gradients(made: Tensor, operands: Any, out: Tensor) -> list[Tensor]:
    return [made.detach(), *torch.autograd.grad(made, operands, out)]


# ------------------------------------------------------------------------------------------------------------- skipping


def _gated(device: str, run: RunConfig) -> GPT:
    """A model whose own gates are of all kinds: open, half open, closed."""
    return shaken(build(run, device)).eval()


def _skipping_against_masks(report: "Report", device: str) -> None:
    """In float32, on this device and against the CPU."""
    run = gated_run(device, seq_len=1024 if device == "cuda" else 256)
    found, opened = {}, []
    for where in dict.fromkeys((device, "cpu")):
        model, (ids, _) = _gated(where, run), text(run, where)
        model.gate.register_forward_hook(lambda _m, _a, g: opened.append(float((g > 0).double().mean())))
        for skip in (False, True):
            found[where, skip] = model.logits(ids, 3, skip).cpu()
    report.holds("some tokens are closed, others open", 0 < min(opened) < 1, f"{min(opened):.2f} are open at least")
    off = float((found[device, True] - found[device, False]).abs().max())
    report.check("skipping against masks: logits", off, 1e-4, "largest difference")
    report.check("skipping against masks on a CPU: logits", error(found[device, True], found["cpu", False]), 1e-4)


def _pieces_against_whole(report: "Report", device: str) -> None:
    run = gated_run(device, seq_len=1024 if device == "cuda" else 256)
    model, (ids, _) = _gated(device, run), text(run, device)
    decoder = Decoder(model, ids.shape[1], 3)
    pieces = [decoder.features(piece) for piece in ids.split([ids.shape[1] - 20, *[1] * 20], 1)]
    report.check(
        "cached keys against the whole text", error(torch.cat(pieces, 1), model.features(ids, 3, skip=True)), 1e-4
    )


def cost(report: "Report", device: str) -> None:
    """Time of the block part by share of closed tokens: benchmarks/skipping.py on skip-middle's trunk."""
    name, sizes = ("skip_middle", (skipping.SEQUENCES, skipping.LENGTH))
    changes: dict[str, Any] = {}
    if report.quick or device == "cpu":
        name, sizes, changes = "skip_middle_tiny", (2, 128), {"model.layers": 2, "model.dtype": "float32"}
    run = skipping.run_of(name, "none", device, changes)
    rows = skipping.measure(skipping.arms(name, device, changes, *sizes), 3 if report.quick else 20, device)
    for line in skipping.lines(run, rows, sizes[1]):
        note = "" if line.ideal is None else f"ideal {line.ideal:.3f}"
        note += "" if line.saving is None else f"; {100 * line.saving:.0f} % of the ideal saving"
        spread = f"{line.middle:.3f} ({line.low:.3f} to {line.high:.3f})"
        report.measured(f"time of the blocks / dense, {line.name}", spread, note)


SECTIONS: dict[str, Callable[["Report", str], None]] = {"gates": gates, "skipping": cost}
