"""The command line: `python run_recbole.py --model=PruneRec [--dataset=ml-100k] [--key=value ...]`, or any RecBole sequential model."""

import sys

from recbole_prunerec.arguments import USAGE, load_arguments
from recbole_prunerec.errors import UserError


def main(argv: list[str]) -> int:
    """Run what `argv` asks for. Returns the exit code: 0, or 2 for a mistake in what was asked."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE)
        return 0
    try:
        arguments = load_arguments(argv)
        from recbole_prunerec.quick_start import run  # takes seconds to import; mistakes are answered before

        sys.stdout.write(run(arguments))
    except UserError as error:
        lines = str(error).splitlines()
        sys.stderr.write(f"{len(lines)} {'problem' if len(lines) == 1 else 'problems'}:\n" + "".join(f"  - {line}\n" for line in lines))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
