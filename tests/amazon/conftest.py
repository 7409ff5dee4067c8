"""The plain reference is a part of the benchmarks, which are scripts, found by their folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
