"""Put the tables of a finished default run and of two comparisons into the README: `python docs/readme_table.py saved/latest`.

The run's results.json is copied to results/ml-100k-tiny.json, from which the README's table is made. Without an argument that
copy is used as it is. The comparisons' tables are made from results/amazon-games.csv and results/ml-100k.csv, which
`baselines/compare.py --page=results/<name>.md` writes.
"""

import csv
import sys
from pathlib import Path

from recbole_prunerec.errors import UserError
from recbole_prunerec.exits import guarded
from recbole_prunerec.report.results import Results
from recbole_prunerec.report.tables import MARKDOWN, counted, markdown_table, milliseconds, percent, pipe
from recbole_prunerec.storage import read_json, write_json, write_text
from recbole_prunerec.study.written import between

ROOT = Path(__file__).parent.parent
STORED = ROOT / "results" / "ml-100k-tiny.json"
RESULT, COMPARED = (ROOT / "results" / f"{name}.csv" for name in ("amazon-games", "ml-100k"))
BEGIN, END = "<!-- table: made by docs/readme_table.py -->", "<!-- end of table -->"
BEGIN_RESULT, END_RESULT = "<!-- result: made by docs/readme_table.py -->", "<!-- end of result -->"
BEGIN_COMPARED, END_COMPARED = "<!-- comparison: made by docs/readme_table.py -->", "<!-- end of comparison -->"
METRICS, COLUMNS = ("HR@10", "NDCG@10"), ("Retention", "All parameters", "ms/user")


def with_table(readme: str, results: Results) -> str:
    """`readme` with the table between its marks made anew."""
    run = f"`{results.command}` on {results.device}; {results.dataset['users']} users, {results.dataset['items']:,} items, seed {results.seed}."
    return _between(readme, BEGIN, END, f"{markdown_table(results)}\n{run}")


def with_result(readme: str, text: str) -> str:
    """`readme` with all systems of the CSV `text` of the comparison on amazon-games."""
    return _between(readme, BEGIN_RESULT, END_RESULT, _table(list(csv.DictReader(text.splitlines()))))


def with_comparison(readme: str, text: str) -> str:
    """`readme` with the recommenders of the CSV `text` of the comparison on ml-100k."""
    rows = [row for row in csv.DictReader(text.splitlines()) if row["group"] == "recommenders"]
    return _between(readme, BEGIN_COMPARED, END_COMPARED, _table(rows))


def _table(rows: list[dict[str, str]]) -> str:
    best = {metric: max(float(row[metric]) for row in rows if row[metric]) for metric in METRICS}
    return pipe(["System", *METRICS, *COLUMNS], [_cells(row, best) for row in rows], 1)


def _cells(row: dict[str, str], best: dict[str, float]) -> list[str]:
    """A system's cells; what it has not is n/a."""
    metrics = []
    for metric in METRICS:
        cell = f"{float(row[metric]):.4f}" if row[metric] else "n/a"
        metrics.append(MARKDOWN.bold(cell) if row[metric] and float(row[metric]) == best[metric] else cell)
    share = float(row["share_total"]) if row["share_total"] else None
    return [
        row["system"],
        *metrics,
        f"{percent(float(row['retention']))}{between(_ends(row))}" if row["retention"] else "n/a",
        counted(int(row["total"]), share) if row["total"] else "n/a",
        milliseconds(float(row["seconds_per_user"])) if row["seconds_per_user"] else "n/a",
    ]


def _ends(row: dict[str, str]) -> tuple[float, float] | None:
    """Of the 95 % interval of retention; the teacher's own has none."""
    return (float(row["retention low"]), float(row["retention high"])) if row["retention low"] else None


def _between(readme: str, begin: str, end: str, content: str) -> str:
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{content.rstrip()}\n\n{end}{after}"


def main(arguments: list[str]) -> None:
    """Copy a run's results, if one is named, and rewrite the README."""
    for path in (RESULT, COMPARED):
        if not path.is_file():
            raise UserError(f"{path} is not here; make it with the command that {path.with_suffix('.md')} begins with")
    if arguments:
        results = read_json(Path(arguments[0]) / "results.json", Results)
        if results.worthless:
            raise UserError(f"{arguments[0]} is a smoke run, whose figures are worth nothing; name a run of the preset tiny")
        write_json(STORED, results)
    readme = ROOT / "README.md"
    text = with_table(readme.read_text(encoding="utf-8"), read_json(STORED, Results))
    write_text(readme, with_comparison(with_result(text, RESULT.read_text(encoding="utf-8")), COMPARED.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
