"""The files of a comparison."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from recbole_prunerec.report.plots import image
from recbole_prunerec.report.tables import SCREEN
from recbole_prunerec.storage import write_bytes, write_json, write_text
from recbole_prunerec.study.gathered import Study
from recbole_prunerec.study.page import to_html
from recbole_prunerec.study.pictures import pictures
from recbole_prunerec.study.written import differences_to_csv, table, to_csv, to_latex, to_markdown, told

BY_HAND = "\n## What to try next\n"  # of a page; it, and what follows it, stays when the page is made again


def write(study: Study, out: Path, page: Path | None) -> str:
    """Write every form of the comparison into the folder `out`; Markdown to `page`, with plots and numbers beside it. Returns the screen's."""
    figures = pictures(study)
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            write_bytes(out / f"{name}.{kind}", image(figure, kind))
    write_text(out / "comparison.md", to_markdown(study, beside=[f"{name}.png" for name in figures]))
    write_text(out / "comparison.tex", to_latex(study))
    write_text(out / "comparison.csv", to_csv(study))
    write_text(out / "differences.csv", differences_to_csv(study))
    write_text(out / "comparison.html", to_html(study, figures))
    write_json(out / "comparison.json", study)
    if page is not None:
        for name, figure in figures.items():
            write_bytes(page.with_name(f"{page.stem}-{name}.png"), image(figure, "png"))
        title = f"{study.dataset['name']}, {study.preset}"
        write_text(page.with_suffix(".csv"), to_csv(study))
        write_text(page, to_markdown(study, title, [f"{page.stem}-{name}.png" for name in figures]) + _by_hand(page))
    headings, cells, notes = table(study, SCREEN)
    columns = [heading.replace(" ", "\n").replace("/", "\n/") for heading in headings]
    shown = tabulate(cells, columns, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * (len(headings) - 1)])
    return "\n\n".join([shown, "\n".join([*notes, *told(study)]), f"{out}: comparison.html and the same as .md, .tex, .csv, .json"]) + "\n"


def _by_hand(page: Path) -> str:
    """The end of the page that is there, which somebody wrote."""
    _, mark, rest = (page.read_text(encoding="utf-8") if page.is_file() else "").partition(BY_HAND)
    return mark + rest
