"""The whole comparison by one command: `python baselines/compare.py --dataset=ml-100k --systems=all --seeds=3`. docs/compare.md tells of it."""

import sys
from pathlib import Path

from recbole_prunerec.exits import guarded
from recbole_prunerec.study.command import USAGE, compare

SCRIPT = Path(__file__).resolve().parent.parent / "run_recbole.py"


def main(argv: list[str]) -> int:
    """Compare what `argv` asks for. Returns the exit code: see `guarded`."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE)
        return 0
    return guarded(lambda: sys.stdout.write(compare(argv, SCRIPT)), again="the same command goes on where it was cut")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
