"""The command line: `python run_recbole.py --model=PruneRec [--dataset=ml-100k] [--key=value ...]`, or any RecBole sequential model."""

import sys

from recbole_prunerec.arguments import USAGE, load_arguments
from recbole_prunerec.exits import guarded


def main(argv: list[str]) -> int:
    """Run what `argv` asks for. Returns the exit code: see `guarded`."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE)
        return 0

    def work() -> None:
        arguments = load_arguments(argv)
        from recbole_prunerec.quick_start import run  # takes seconds to import; mistakes are answered before

        sys.stdout.write(run(arguments))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
