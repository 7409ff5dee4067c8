"""The paper's tables and figures by name: `python baselines/paper.py fig5b`. docs/compare.md says what each shows."""

import sys
from pathlib import Path

from recbole_prunerec.exits import guarded
from recbole_prunerec.study.figures import NAMES, USAGE, paper

SCRIPT = Path(__file__).resolve().parent.parent / "run_recbole.py"


def main(argv: list[str]) -> int:
    """Make what `argv` names. Returns the exit code: see `guarded`."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE.format(names=", ".join(NAMES)))
        return 0
    return guarded(lambda: sys.stdout.write(paper(argv, SCRIPT)), again="the same command goes on where it was cut")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
