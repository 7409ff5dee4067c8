"""Settings by the paper's grids, on validation alone: `python baselines/tune.py --grids=SASRec-BCE`. docs/compare.md tells of it."""

import sys

from recbole_prunerec.exits import guarded
from recbole_prunerec.study.tuning import GRIDS, USAGE, tune


def main(argv: list[str]) -> int:
    """Tune what `argv` asks for. Returns the exit code: see `guarded`."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE.format(grids=f"or {', '.join(list(GRIDS)[1:])}"))
        return 0
    return guarded(lambda: sys.stdout.write(tune(argv)), again="the same command goes on where it was cut")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
