"""What the tasks of a SLURM job execute: told by the batch step, through the environment."""

import json
import os
from dataclasses import asdict, dataclass

VARIABLE = "SKIPSWEEP_ASSIGNMENT"


@dataclass(frozen=True)
class Assignment:
    """Runs of a job."""

    runs: list[tuple[str, int] | None]
    """(run folder, number of the attempt) by place on the node where packed, else one; None: nothing left to do."""
    packed: bool

    def slot(self, task: int) -> tuple[str, int] | None:
        """What a task executes, by its number in the job."""
        if not self.packed:
            return self.runs[0]
        return self.runs[task] if task < len(self.runs) else None

    def to_environment(self) -> dict[str, str]:
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of_environment(cls) -> "Assignment":
        content = json.loads(os.environ[VARIABLE])
        return cls([None if one is None else (one[0], one[1]) for one in content["runs"]], content["packed"])
