"""Small runs for tests: seconds on one thread, every part of the real thing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from skipsweep import config as c
from skipsweep import files
from skipsweep.rundir import RunDir
from skipsweep.sweep import plan as planning
from skipsweep.sweep.freeze import freeze
from skipsweep.sweep.resolve import ComposedPoint

STEPS = 12

MODEL = c.Model(
    layers=3,
    dim=16,
    heads=2,
    mlp_ratio=2.0,
    no_attention=[1],
    softcap=15.0,
    vocab_multiple=5,
    rotary_base=64.0,
    rotary_fraction=0.5,
    attention_scale=0.3,
    value_norm=True,
    value_lambda=True,
    document_mask=True,
    window=8,
    window_block=2,
    window_growth="cubic",
    long_window=[0],
)
LAMBDAS = c.LambdaInit(unet=1.0, value=0.5, value_embedding=0.5)
MUON = c.Muon(
    lr=0.02,
    momentum=0.95,
    momentum_start=0.85,
    momentum_warmup=6,
    newton_schulz=[[4.0848, -6.8946, 2.9270], [3.9505, -6.3029, 2.6377], [2.8366, -3.0525, 1.2012]],
    smoothing=0.2,
    weight_decay=0.1,
    mlp_decay_factor=2.0,
    embed_lr=0.05,
    head_lr=0.02,
    scalar_lr=0.05,
    beta1=0.8,
    beta2=0.95,
    eps=1e-8,
    outer_every=5,
    outer_lr=0.7,
    outer_momentum=0.4,
)


def configuration(folder: Path, data_root: Path, **changes: Any) -> c.Config:
    """12 steps of a 3-layer model with all of the speedrun's mechanisms on a synthetic corpus, two micro-batches per
    step. `changes`: fields of Config."""
    base = c.Config(
        skip_layers=c.SkipLayers([0]),
        head_type=c.Add(),
        gate_targets=c.NoGates(),
        control=c.NoControl(),
        lambda_init=replace(LAMBDAS),
        model=replace(MODEL),
        embeddings=c.Embeddings(mix=True, extra=1, value_layers=[[0, 2]]),
        residual=c.Residual(unet=[[0, 2]]),
        data=c.Synthetic(
            tokenizer="none",
            seq_len=16,
            batch_tokens=128,
            val_tokens=256,
            order="shuffled",
            states=32,
            branching=2,
            train_tokens=4000,
        ),
        optim=replace(MUON),
        schedule=c.Trapezoid(steps=STEPS, cooldown=0.5, final=0.1),
        compute=c.Compute(micro_batch=4, threads=1),
        record=c.Record(val_every=4, checkpoint_every=3),
        logger=c.NoLogger(),
        paths=c.Paths(multirun=str(folder), data=str(data_root)),
        selection_method=c.LateToEarly(),
    )
    return replace(base, **changes)


def frozen(config: c.Config) -> RunDir:
    """Plan a single run and freeze it."""
    plan = planning.make([ComposedPoint("run", config, ())], "test", single=True)
    freeze(plan, "none")
    return plan.multirun.run(next(iter(plan.configs)))


def rows(run: RunDir) -> list[dict[str, Any]]:
    """Metric rows without what may differ between equal runs: times and attempt."""
    return [
        {k: v for k, v in row.items() if k not in ("time", "train_time_s", "attempt")} for row in run.read_metrics()
    ]


def result(run: RunDir) -> dict[str, Any]:
    """result.json; it must be there."""
    found = files.read_json(run.result)
    assert found is not None, run.read_status()
    return found


class Quiet:
    """A progress display that shows nothing."""

    def update(self, now: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass
