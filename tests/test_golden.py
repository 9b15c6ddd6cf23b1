"""The ratchet on numbers: twenty losses per mechanism, in float64, written down.

If a trace has moved, some change of code changed results: then finished runs and new ones must not share an id. Raise
`RESULTS_VERSION` (skipsweep/sweep/identity.py), say why in docs/changed-results.md, and write the traces anew:

    python tests/test_golden.py

which refuses while the version is the old one and a trace has moved. `python tests/test_golden.py NAME` writes the
trace of a new mechanism alone, or of one with a new version of its own (`MECHANISM_VERSIONS`).
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import LAMBDAS, MODEL, MUON, configuration

from skipsweep import config as c
from skipsweep.data import prepare
from skipsweep.data.batches import Batches
from skipsweep.distributed import World
from skipsweep.sweep import identity
from skipsweep.sweep.canonical import canonical_form
from skipsweep.train import Trainer

FILE = Path(__file__).parent / "golden" / "traces.json"
CHANGES = Path(__file__).parents[1] / "docs" / "changed-results.md"
STEPS = 20
TOLERANCE = 5e-6
"""Nats. Between instruction sets (ATEN_CPU_CAPABILITY=default against avx2) and thread counts the traces differ by up
to 7e-7 on one machine: the float32 draws of the initialisation differ in their last bit. A constant that is changed
moves a trace by 1e-4 and more."""

ADAMW = c.AdamW(lr=0.01, embed_lr=0.05, head_lr=0.02, scalar_lr=0.05, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=1.0)

SKIPPING = replace(LAMBDAS, skip_lambda=0.3)
MANY = c.SkipLayers([0, 1, "input", "extra", "last"])

LLAMA = c.Model(layers=3, dim=16, heads=2, mlp_ratio=2.0, block="llama")

EVEN = replace(MODEL, layers=4)
GATES = c.Free(init="normal", attention="keys", floor=1e-6)
TARGETS = c.Linear(init="normal", attention="keys", floor=1e-6, start=0.9, end=0.4)

MECHANISMS: dict[str, dict[str, Any]] = {
    "none": {"skip_layers": c.SkipLayers([])},
    "add": {"skip_layers": c.SkipLayers([0, 1])},
    "add input": {"skip_layers": c.SkipLayers([1, "input"])},
    "add from 0.5": {"lambda_init": replace(LAMBDAS, x_lambda=0.5, skip_lambda=0.5)},
    "add_renorm": {"head_type": c.AddRenorm()},
    "concat": {"head_type": c.Concat(), "skip_layers": c.SkipLayers([0, "input", "last"])},
    "add extra": {"skip_layers": c.SkipLayers([1, "extra"])},
    "add_unnormed": {"head_type": c.AddUnnormed(), "lambda_init": SKIPPING},
    "add_detached": {"head_type": c.AddDetached(), "lambda_init": SKIPPING},
    "add_fixed_x": {"head_type": c.AddFixedX(), "lambda_init": SKIPPING},
    "add_relu": {"head_type": c.AddRelu(), "lambda_init": SKIPPING},
    "add_tanh": {"head_type": c.AddTanh(), "lambda_init": SKIPPING},
    "add_relu_linear": {"head_type": c.AddReluLinear(), "lambda_init": SKIPPING},
    "concat extra": {"head_type": c.Concat(), "skip_layers": c.SkipLayers([0, "extra"])},
    "concat_mlp": {"head_type": c.ConcatMLP()},
    "concat_mlp, head widened": {"head_type": c.ConcatMLP(widen_head=True, hidden=24), "skip_layers": MANY},
    "concat_mlp_narrow": {"head_type": c.ConcatMLPNarrow(width=4, norm_each=True), "skip_layers": MANY},
    "backout": {"head_type": c.Backout(), "lambda_init": replace(LAMBDAS, backout=0.5)},
    "cosine": {"schedule": c.Cosine(steps=STEPS, final=0.1, warmup_steps=3)},
    "constant": {"schedule": c.Constant(steps=STEPS)},
    "uncapped": {"model": replace(MODEL, softcap=0.0)},
    "plain blocks": {
        "model": c.Model(layers=3, dim=16, heads=2, mlp_ratio=2.0, softcap=15.0),
        "embeddings": c.Embeddings(),
        "residual": c.Residual(),
    },
    "no sum before blocks": {"embeddings": c.Embeddings(value_layers=[[0, 2]])},
    "no U-net": {"residual": c.Residual()},
    "U-net through a sigmoid": {
        "residual": c.Residual(unet=[[0, 2]], unet_weight="sigmoid"),
        "lambda_init": replace(LAMBDAS, unet=-1.5),
    },
    "rolling": {"model": replace(MODEL, layers=5), "residual": c.Residual(unet=[[0, 2]], rolling=True)},
    "parallel tail": {"residual": c.Residual(unet=[[0, 2]], parallel_tail=2)},
    "x00 alone": {"embeddings": c.Embeddings(mix=True, value_layers=[[0, 2]])},
    "x00 to x04": {"embeddings": c.Embeddings(mix=True, extra=4, value_layers=[[0, 2]])},
    "start values by layer": {
        "lambda_init": replace(LAMBDAS, block_x=[1.1, 1.0, 0.9], block_x00=[0.0, 0.1, 0.2], value=[0.5, 0.6])
    },
    "no value embeddings": {"embeddings": c.Embeddings(mix=True, extra=1)},
    "attention everywhere": {"model": replace(MODEL, no_attention=[])},
    "a layer left out": {
        "model": replace(MODEL, no_mlp=[1]),
        "embeddings": c.Embeddings(mix=True, extra=1, value_layers=[[0, 2]]),
    },
    "smear": {"model": replace(MODEL, smeared=True), "lambda_init": replace(LAMBDAS, smear=0.3)},
    "gated attention": {"model": replace(MODEL, attention_gate=True)},
    "softcap by tanh": {"model": replace(MODEL, softcap=2.0, softcap_curve="tanh")},
    "stages": {"model": replace(MODEL, window_growth="stages", window_stages=[1, 2, 3])},
    "stages with YaRN": {"model": replace(MODEL, window_growth="stages", window_stages=[1, 2, 3], yarn=True)},
    "whole windows": {"model": replace(MODEL, window=0)},
    "windows that do not grow": {"model": replace(MODEL, window_growth="none")},
    "values not normed": {"model": replace(MODEL, value_norm=False)},
    "horizon": {"schedule": c.Trapezoid(steps=STEPS, cooldown=0.5, final=0.1, horizon=30, window_horizon=40)},
    "adamw": {"optim": ADAMW},
    "no outer optimiser": {"optim": replace(MUON, outer_every=0)},
    "no smoothing": {"optim": replace(MUON, smoothing=0.0)},
    "llama, pre-norm": {"model": LLAMA, "embeddings": c.Embeddings(), "residual": c.Residual(), "optim": ADAMW},
    "llama, sandwich norm": {
        "model": replace(LLAMA, norm_scheme="sandwich", kv_heads=1, norm_eps=1e-5, init_std=0.1, mlp_multiple=24),
        "embeddings": c.Embeddings(mix=True, extra=1),
        "optim": ADAMW,
    },
    "warm-up from a tenth": {"schedule": c.Cosine(steps=STEPS, final=0.1, warmup_steps=3, warmup_start=0.1)},
    "gates": {"model": EVEN, "residual": c.Residual(), "gate_targets": GATES},
    "gates with a bias, no gated attention": {
        "model": EVEN,
        "residual": c.Residual(),
        "gate_targets": replace(GATES, init="open", bias=-0.5, attention="none"),
    },
    "a price on gates": {
        "model": EVEN,
        "residual": c.Residual(),
        "gate_targets": GATES,
        "control": c.SparsityVariance(alpha=0.3, beta=-0.3),
    },
    "controlled gates": {
        "model": EVEN,
        "residual": c.Residual(),
        "gate_targets": TARGETS,
        "control": c.Proportional(gamma=2.0, delta=0.01),
    },
    "seed 1": {"seed": 1},
    "sequential data": {},
}


def canonical(mechanism: str, data_root: Path) -> c.RunConfig:
    config = configuration(data_root, data_root, schedule=c.Trapezoid(steps=STEPS, cooldown=0.5, final=0.1))
    config = replace(config, **MECHANISMS[mechanism])
    config.model = replace(config.model, dtype="float64")
    config.data = replace(config.data, order="sequential" if mechanism == "sequential data" else "shuffled")
    return canonical_form(config, prepare.resolve(config.data, data_root))


def trace(run: c.RunConfig, data_root: Path) -> list[float]:
    """The training losses of twenty steps."""
    trainer = Trainer(run, Batches(run.data, data_root), World())
    return [b.train_loss.item() for b in trainer.run() if b.train_loss is not None]


def own_versions(run: c.RunConfig) -> dict[str, int]:
    return identity.versions(c.recipe_of(run)).get("mechanisms", {})


def stored() -> dict[str, Any]:
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_losses_have_not_moved(mechanism: str, data_root: Path) -> None:
    golden = stored()
    assert golden["results_version"] == identity.RESULTS_VERSION, "write the traces anew: python tests/test_golden.py"
    run = canonical(mechanism, data_root)
    assert golden["mechanisms"].get(mechanism, {}) == own_versions(run), "write it: python tests/test_golden.py NAME"
    found = trace(run, data_root)
    moved = float(np.abs(np.subtract(found, golden["traces"][mechanism])).max())
    assert moved <= TOLERANCE, f"{mechanism} moved by {moved:.2e}: raise RESULTS_VERSION and say why (see above)"


def test_every_mechanism_has_a_trace_of_its_own() -> None:
    """Two equal traces would mean that a setting does nothing."""
    traces = stored()["traces"]
    assert traces.keys() == MECHANISMS.keys()
    names = list(traces)
    for i, a in enumerate(names):
        for b in names[:i]:
            assert float(np.abs(np.subtract(traces[a], traces[b])).max()) > 20 * TOLERANCE, (a, b)


def test_every_results_version_is_explained() -> None:
    text = CHANGES.read_text()
    for version in range(1, max(identity.RESULTS_VERSION, *identity.MECHANISM_VERSIONS.values()) + 1):
        assert f"## {version}" in text


def main(data_root: Path, names: Sequence[str]) -> str | None:
    """Write the traces, all or those of `names`; returns what forbids it."""
    runs = {mechanism: canonical(mechanism, data_root) for mechanism in names or MECHANISMS}
    found = {mechanism: trace(run, data_root) for mechanism, run in runs.items()}
    own, before = {mechanism: own_versions(run) for mechanism, run in runs.items()}, stored()
    if before["results_version"] == identity.RESULTS_VERSION:
        for mechanism, losses in before["traces"].items():
            is_old = mechanism in found and own[mechanism] == before["mechanisms"].get(mechanism, {})
            if is_old and np.abs(np.subtract(found[mechanism], losses)).max() > TOLERANCE:
                return f"{mechanism} has moved: raise RESULTS_VERSION first"
    elif names:
        return "RESULTS_VERSION was raised: all traces are to be written anew"
    if names:
        own, found = before["mechanisms"] | own, before["traces"] | found
    changed = {mechanism: versions for mechanism, versions in own.items() if versions}
    document = {"results_version": identity.RESULTS_VERSION, "mechanisms": changed, "traces": found}
    FILE.write_text(json.dumps(document, indent=1) + "\n")
    return None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(main(Path(folder), sys.argv[1:]))
