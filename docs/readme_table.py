"""Put the table of a finished default run into the README: `python docs/readme_table.py saved/latest`.

The run's results.json is copied to results/ml-100k-tiny.json, from which the README's table is made. Without an argument that
copy is used as it is.
"""

import sys
from pathlib import Path

from recbole_prunerec.errors import UserError
from recbole_prunerec.exits import guarded
from recbole_prunerec.report.results import Results
from recbole_prunerec.report.tables import markdown_table
from recbole_prunerec.storage import read_json, write_json, write_text

ROOT = Path(__file__).parent.parent
STORED = ROOT / "results" / "ml-100k-tiny.json"
BEGIN, END = "<!-- table: made by docs/readme_table.py -->", "<!-- end of table -->"


def with_table(readme: str, results: Results) -> str:
    """`readme` with the table between its marks made anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    run = f"`{results.command}` on {results.device}; {results.dataset['users']} users, {results.dataset['items']:,} items, seed {results.seed}."
    return f"{before}{BEGIN}\n\n{markdown_table(results)}\n{run}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Copy a run's results, if one is named, and rewrite the README."""
    if arguments:
        results = read_json(Path(arguments[0]) / "results.json", Results)
        if results.worthless:
            raise UserError(f"{arguments[0]} is a smoke run, whose figures are worth nothing; name a run of the preset tiny")
        write_json(STORED, results)
    readme = ROOT / "README.md"
    write_text(readme, with_table(readme.read_text(encoding="utf-8"), read_json(STORED, Results)))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
