"""Synthetic sweeps for tests of analysis: folders as runs leave them, written by the code that writes them.

made = Made(tmp_path, baseline="none", target=2.92)
made.arm("none", [2.925, 2.924, 2.926])
made.arm("5", [2.921, None, 2.922], sources=[5])      # the second seed has not finished
evidence = made.read()
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipsweep import files
from skipsweep.analyze.evidence import Evidence, read
from skipsweep.rundir import Multirun, RunDir

STEPS = 100
BATCH_TOKENS = 2048


@dataclass
class Made:
    """A sweep in the making. `plan`: further keys of plan.json (published, confounds, may_differ, paired)."""

    folder: Path
    name: str = "question"
    question: str | None = "Does it help?"
    baseline: str | None = None
    target: float | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)

    @property
    def multirun(self) -> Multirun:
        return Multirun(self.folder)

    def arm(self, name: str, losses: Sequence[float | None], **about: Any) -> list[RunDir]:
        """An arm with one run per loss, seeds counted from 0; a None is a run that has no result (`state`, see `run`).
        `about`: as for `run`; and `first_seed`, `same_runs_as` (names of runs that another arm has made)."""
        first, reuse = about.pop("first_seed", 0), about.pop("same_runs_as", None)
        made = []
        for i, loss in enumerate(losses):
            seed = first + i
            run = reuse[i] if reuse else self.run(name, seed, loss, **about)
            made.append(run)
            self.point(name, seed, run.name, about.get("sources", ()), about.get("ordering"), about.get("tags"))
        return made

    def point(
        self,
        arm: str,
        seed: int,
        run: str,
        sources: Sequence[Any] = (),
        ordering: Sequence[int] | None = None,
        tags: Sequence[str] | None = None,
        replicate: int = 0,
    ) -> None:
        """A point of the plan."""
        kind = "none" if not sources else "single_layer" if len(sources) == 1 else "multi_layer"
        self.points.append(
            {
                "key": [arm, seed, replicate],
                "run": run,
                "overrides": [f"skip_layers.layers={list(sources)}".replace(" ", ""), f"seed={seed}"],
                "sources": list(sources),
                "ordering": None if ordering is None else list(ordering),
                "tags": list(tags or [kind]),
            }
        )

    def run(
        self,
        arm: str,
        seed: int,
        loss: float | None,
        *,
        state: str | None = None,
        cause: str | None = None,
        steps: int = STEPS,
        validations: int = 5,
        curve: Sequence[tuple[int, float, float]] | None = None,
        lambdas: Mapping[str, float] | None = None,
        sources: Sequence[Any] = (),
        recipe: Mapping[str, Any] | None = None,
        host: str = "node1",
        gpus: Sequence[str] = (),
        torch: str = "2.13.0",
        commit: str = "c0ffee",
        results_version: int = 2,
        seconds_per_step: float = 0.1,
        imported: bool = False,
        **_: Any,
    ) -> RunDir:
        """One run folder. `loss`: the final one, or None for no result. `state`: of status.json; by default done with a
        loss, failed without. `curve`: (step, training time in s, val loss) of every validation; by default
        `validations` of them, falling by 1/step to the loss. `lambdas`: label -> final value, reached linearly from 0.
        `recipe`: dotted key -> value, beside the usual ones."""
        slug = f"{self.name}-{arm}".replace("/", "_").replace("[", "").replace("]", "")
        run = self.multirun.run(f"{slug}-s{seed}-{hashlib.sha256(slug.encode()).hexdigest()[:12]}")
        for folder in (run.path, run.leases):
            folder.mkdir(parents=True, exist_ok=True)
        head = "add" if sources else "last"
        settings = {
            "skip_layers.layers": list(sources),
            "head_type.name": head,
            "model.layers": 8,
            "model.dim": 128,
            "schedule.name": "trapezoid",
            "schedule.steps": steps,
            "data.batch_tokens": BATCH_TOKENS,
            **(recipe or {}),
            "seed": seed,
            "replicate": 0,
        }
        identity = {"id": run.id, "results_version": results_version, "settings": settings, "recipe": settings}
        files.write_json(run.identity, identity | ({"imported": True} if imported else {}), durable=False)
        files.write_json(run.env, {"1": _env(host, gpus, torch, commit)}, durable=False)
        state = state or ("failed" if loss is None else "done")
        failure = {"cause": cause or "nan", "message": "?"} if state == "failed" else {}
        run.write_status(state, durable=False, attempt=1, host=host, **failure)
        if state in ("planned", "submitted"):
            return run
        points = list(curve) if curve is not None else _curve(loss, steps, validations, seconds_per_step)
        for row in _rows(points, dict(lambdas or {}), steps):
            files.append_row(run.metrics, row)
        if loss is not None and state == "done":
            made = _result(run, loss, points, steps, dict(lambdas or {}))
            files.write_json(run.result, made | ({"imported": {}} if imported else {}), durable=False)
        return run

    def write(self) -> Multirun:
        """Write plan.json."""
        folder = self.multirun.sweep(self.name)
        folder.path.mkdir(parents=True, exist_ok=True)
        document = {
            "name": self.name,
            "question": self.question,
            "source": None,
            "target": self.target,
            "may_differ": None,
            "published": {},
            "baseline": self.baseline or self.points[0]["key"][0],
            "points": self.points,
            "commands": ["python launch.py -m skip_layers=none,5"],
            "commit": "c0ffee",
            "code": "abc",
            "created": 1.0,
            "updated": 2.0,
            **self.plan,
        }
        files.write_json(folder.plan, document, durable=False)
        return self.multirun

    def read(self) -> Evidence:
        """Write plan.json and read everything back."""
        return read(self.write(), [self.name])


def _env(host: str, gpus: Sequence[str], torch: str, commit: str) -> dict[str, Any]:
    return {
        "host": host,
        "gpus": list(gpus),
        "torch": torch,
        "commit": commit,
        "code": f"code-{commit}",
        "threads": 1,
        "world_size": max(1, len(gpus)),
    }


def _curve(loss: float | None, steps: int, validations: int, per_step: float) -> list[tuple[int, float, float]]:
    last = 5.0 if loss is None else loss
    at = [round(steps * i / (validations - 1)) for i in range(validations)]
    return [(step, round(step * per_step, 6), last + 1.0 / (1 + step) - 1.0 / (1 + steps)) for step in at]


def _rows(points: Sequence[tuple[int, float, float]], lambdas: dict[str, float], steps: int) -> list[dict[str, Any]]:
    return [
        {
            "attempt": 1,
            "step": step,
            "tokens": step * BATCH_TOKENS,
            "time": 1000.0 + seconds,
            "train_time_s": seconds,
            **({"train/loss": loss + 0.01, "grad_norm": 1.0, "lr/blocks": 0.02 * (1 - step / steps)} if step else {}),
            "val/loss": loss,
            **{label: value * step / steps for label, value in lambdas.items()},
        }
        for step, seconds, loss in points
    ]


def _result(
    run: RunDir, loss: float, points: Sequence[tuple[int, float, float]], steps: int, lambdas: dict[str, float]
) -> dict[str, Any]:
    curve = [
        {"step": step, "tokens": step * BATCH_TOKENS, "train_time_s": seconds, "val/loss": value}
        for step, seconds, value in points
    ]
    return {
        "id": run.id,
        "attempt": 1,
        "val_loss": loss,
        "steps": steps,
        "tokens": steps * BATCH_TOKENS,
        "train_time_s": points[-1][1] if points else None,
        "unigram_entropy": 3.1,
        "parameters": {"blocks.attention": 1000, "head": 500},
        "flops_per_token": {"blocks.attention": 6000, "head": 3000},
        "inference_flops_per_token": {"dense": {"blocks.attention": 2000, "head": 1000}},
        "lambdas": lambdas,
        "val_curve": curve,
    }
