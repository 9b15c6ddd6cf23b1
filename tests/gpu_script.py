"""The modules of benchmarks/, for tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bounds as bounds
import gpu as gpu
import gpu_checks as checks
import gpu_gates as gates
import gpu_speed as speed
import shipped as shipped
import skipping as skipping
import trunk as trunk

__all__ = ["bounds", "checks", "gates", "gpu", "shipped", "skipping", "speed", "trunk"]
