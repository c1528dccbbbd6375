"""A comparison as one HTML page, whole in itself: style, pictures and script are in it, and its own
content security policy forbids it any address. Without scripts it shows the same, but unsorted."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import yaml

from cola_train.compare import figures, sentences
from cola_train.compare.columns import Column, costs, differing, results

ASSETS = files("cola_train.compare") / "page"
Summary = Mapping[str, Any]

CAPTIONS = {
    "curves": "Mean over seeds, in a band from the lowest to the highest; where a line ends stand "
    "the arm and its perplexity. The scale is logarithmic; what came early may lie above it.",
    "figure_one": "After Figure 1 of the CoLA paper, from these runs. Left: what a token costs "
    "against the model's size (marks of the same place stand side by side). Right: the mean as a "
    "line, each seed as a dot.",
    "rates": "After the runs that choose rates, one seed each. A ring marks the learning rate that "
    "was chosen, a triangle a perplexity beyond the scale, a cross a run that failed.",
    "memory": "After Figure 3 of the CoLA paper: what each arm stores in training, as planned for "
    "one process.",
}
HEADINGS = {
    "figure_one": "Compute against size, and perplexity",
    "rates": "Learning rates",
    "memory": "Memory by part",
}


def html(summary: Summary) -> str:
    """The page."""
    parts = {
        "TITLE": escape(sentences.title(summary)),
        "STYLE": _asset("style.css"),
        "BODY": "\n".join(_body(summary)),
        "SCRIPT": _asset("sort.js"),
    }
    page = _asset("page.html")
    for name, text in parts.items():
        before, mark, after = page.partition(f"{{{{{name}}}}}")
        assert mark, name
        page = before + text + after
    return page


def _body(summary: Summary) -> Iterable[str]:
    yield _header(summary)
    yield _section("Results", _table(summary, results(summary)), _failures(summary))
    yield _curves(summary)
    for name, draw in figures.DRAWN.items():
        yield _section(HEADINGS[name], _figure(draw(summary), CAPTIONS[name]))
    yield _section("What each arm is, computes and stores", _table(summary, costs()))
    yield _section("Settings that differ", _settings(summary))
    meanings = (f"<p><b>{escape(k)}</b>: {escape(v)}</p>" for k, v in sentences.meanings(summary))
    yield _section("How to read this page", *meanings)
    yield _footer(summary)


def _header(summary: Summary) -> str:
    found = "".join(
        f'<li class="{verdict.replace(" ", "-")}">{escape(words)}</li>'
        for verdict, words in sentences.findings(summary)
    )
    design = " ".join(sentences.design(summary))
    heading = f"<h1>{escape(sentences.title(summary))}</h1>"
    return f"<header>{heading}<ul>{found}</ul><p>{escape(design)}</p></header>"


def _section(heading: str, *inside: str) -> str:
    """Nothing, if nothing is in it."""
    text = "\n".join(inside)
    return f"<section><h2>{escape(heading)}</h2>\n{text}</section>" if text.strip() else ""


def _table(summary: Summary, columns: Sequence[Column]) -> str:
    """A row an arm; each cell has what it stands for as data-value, "" if that is not known."""
    kinds = [' class="words"' if column.words else "" for column in columns]
    heads = "".join(
        f'<th scope="col"{kind}>{escape(column.heading)}</th>'
        for kind, column in zip(kinds, columns, strict=True)
    )
    rows = []
    for arm in summary["arms"]:
        cells = []
        for i, column in enumerate(columns):
            value = column.value(arm)
            data = f'data-value="{"" if value is None else escape(str(value))}"'
            text = escape(column.cell(arm)).replace(" %", "&nbsp;%")
            if i == 0:
                cells.append(f'<th scope="row" {data}>{figures.swatch(arm)}{text}</th>')
            else:
                cells.append(f"<td {data}{kinds[i]}>{text}</td>")
        row = ' class="baseline"' if arm["baseline"] else ""
        rows.append(f"<tr{row}>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table class="sorts"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _failures(summary: Summary) -> str:
    items = "".join(f"<li>{escape(each)}</li>" for each in sentences.failures(summary))
    return (
        f'<p class="failed">Runs that failed:</p><ul class="failed">{items}</ul>' if items else ""
    )


def _curves(summary: Summary) -> str:
    """One picture for each thing that perplexity is against, and inputs that choose among them:
    the style sheet hides the others."""
    drawn = {over: figures.curves(summary, over) for over in figures.CURVES}
    inputs = "".join(
        f'<label class="choice"><input type="radio" name="over" id="over-{over}"'
        f"{' checked' if over == 'tokens' else ''}>{words}</label>"
        for over, words in figures.CURVES.items()
    )
    shown = [
        _figure(picture, CAPTIONS["curves"], f"over-{over}")
        for over, picture in drawn.items()
        if picture
    ]
    if not shown:
        return ""
    section = _section("Perplexity in training", f"<div>against {inputs}</div>", *shown)
    return section.replace("<section>", '<section class="switch">')


def _figure(picture: str | None, caption: str, name: str = "") -> str:
    if picture is None:
        return ""
    of = f' class="{name}"' if name else ""
    return (
        f'<figure{of}><div class="wide">{picture}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _settings(summary: Summary) -> str:
    heading, rows = differing(summary)
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table class="settings"><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _footer(summary: Summary) -> str:
    origin = " ".join(sentences.origin(summary))
    plan = yaml.safe_dump(summary["plan"], sort_keys=False, default_flow_style=None, width=100)
    again = "".join(f"<p>{_coded(each)}</p>" for each in sentences.again())
    return (
        f"<footer><p>{escape(origin)}</p>{again}<p>comparison.yaml:</p>"
        f"<pre>{escape(plan)}</pre></footer>"
    )


def _coded(sentence: str) -> str:
    """What stands between backticks as code."""
    parts = escape(sentence).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
