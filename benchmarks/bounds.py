"""Figures with a bound: each is printed beside it, and a benchmark that has missed one ends with status 1."""

import sys


class Bounds:
    """What was measured, and whether all of it stayed within its bounds."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def check(self, what: str, value: float, most: float, unit: str = "s") -> None:
        """Print a figure; remember it where it is more than `most`."""
        within = value <= most
        print(f"{what}: {value:.4g} {unit} (at most {most:.4g}){'' if within else ' MISSED'}", flush=True)
        if not within:
            self.missed.append(what)

    def end(self) -> None:
        """End the process, with status 1 if a bound was missed."""
        if self.missed:
            sys.exit(f"beyond their bounds: {'; '.join(self.missed)}")
