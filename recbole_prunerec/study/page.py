"""A comparison as one page for a browser: tables that sort, pictures inside, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from recbole_prunerec.report.plots import image
from recbole_prunerec.report.tables import Form
from recbole_prunerec.study.gathered import Study
from recbole_prunerec.study.written import aims, differences, steps, table, told

HTML = Form(escape, "<b>{}</b>".format, "<u>{}</u>".format, "<sup>{}</sup>".format)


def to_html(study: Study, figures: Mapping[str, Figure]) -> str:
    """The whole page. Cells sort by the number that they start with."""
    headings, cells, notes = table(study, HTML)
    tables = [("All systems", "systems", headings, cells), ("Step by step", "steps", *steps(study, HTML))]
    tables.append(("What was aimed at", "aims", *aims(study, HTML)))
    tables.append(("Against PruneRec", "differences", *differences(study, HTML)))
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        (files("recbole_prunerec.study") / "page.html").read_text(encoding="utf-8")
    )
    return template.render(
        study=study,
        tables=[_marked(*each) for each in tables if each[-1]],
        notes=[Markup(note) for note in notes],
        told=told(study),
        figures=[Markup(inline(image(figure, "svg").decode(), name)) for name, figure in figures.items()],
    )


def _marked(title: str, name: str, headings: list[str], cells: list[list[str]]) -> tuple[str, str, list[Markup], list[list[Markup]]]:
    return title, name, [Markup(text) for text in headings], [[Markup(cell) for cell in row] for row in cells]


def inline(svg: str, name: str) -> str:
    """An SVG file as part of a page, its ids told apart from those of other pictures by `name`."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
