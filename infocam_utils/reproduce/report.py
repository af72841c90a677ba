"""What a run shows and gives back: HTML of each notebook, the index page, notebooks cleaned to commit."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import DictLoader, Environment

from infocam_utils.data.store import atomic_write

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>infocam run {{ run.name }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 }
td, th { padding: .3rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ccc;
  overflow-wrap: break-word }
figure { display: inline-block; width: 35rem; max-width: 100%; margin: .5rem 1rem .5rem 0;
  vertical-align: top }
img { width: 100%; height: auto }
figcaption { font-size: .85rem }
.failed, .interrupted, .running, .waiting { font-weight: bold }
@media (max-width: 50rem) {
  thead { display: none }
  table, tbody, tr, td { display: block; width: auto }
  tr { border-bottom: 2px solid #999; padding: .5rem 0 }
  td { border: 0; padding: .1rem 0 }
  td[data-title]::before { content: attr(data-title) ": "; font-weight: bold }
  figure { margin-right: 0 }
}
</style>
</head>
<body>
<h1>infocam run {{ run.name }}</h1>
<p>Profile {{ run.notebooks.values() | map(attribute="profile") | select | unique | join(", ") }};
{{ run.started }} to {{ run.finished }};
{{ [run.provenance.platform, run.provenance.cpu, run.provenance.gpu] | select | join(", ") }}.
<a href="manifest.json">manifest.json</a> holds versions, hardware, data and parameters.</p>
{% if run.command %}<p><code>{{ run.command }}</code></p>{% endif %}
<h2>Notebooks</h2>
<table><thead><tr><th>Notebook</th><th>Status</th><th>Time</th><th>Files</th></tr></thead><tbody>
{% for name, note in run.notebooks.items() %}<tr><td>{{ name }}</td>
<td class="{{ note.status }}">{{ note.status }}</td>
<td>{% if note.seconds is number %}{{ "%.0f" | format(note.seconds) }} s{% endif %}</td>
<td>{% for file in note.files if "figures/" not in file %}<a href="{{ file }}">{{ file }}</a> {% endfor %}
{{- note.error }}
{%- if note.status != "done" %} What it made before, if anything, is in previous/.{% endif %}</td></tr>
{% endfor %}</tbody></table>
<h2>This run against the committed results</h2>
{% for text, differences in agreement %}<p>{{ text }}</p>
{% if differences %}<ul>{% for text in differences %}<li>{{ text }}</li>{% endfor %}</ul>{% endif %}
{% else %}<p>There are no committed results of the name {{ run.name }} to compare with.</p>
{% endfor %}
{% if scorecard is string %}<p>The claims cannot be judged: {{ scorecard }}</p>
{% elif scorecard %}<h2>Scorecard</h2>
<table><thead><tr>{% for title in scorecard[0] %}<th>{{ title }}</th>{% endfor %}</tr></thead><tbody>
{% for row in scorecard %}<tr>
{% for title, cell in row.items() %}<td data-title="{{ title }}">{{ cell | rich | safe }}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table>{% endif %}
{% for number, group in figures | groupby("number") %}<h2>Figures of {{ number }}</h2>
{% for figure in group %}<figure>
<a href="{{ figure.source }}"><img src="{{ figure.source }}" alt="{{ figure.alt }}"></a>
<figcaption>{{ figure.alt }}</figcaption></figure>
{% endfor %}{% endfor %}
</body>
</html>
"""


# nbconvert's own template with a figure's alternative text, which it leaves out.
_ALT = """{% extends "lab/index.html.j2" %}
{% block data_png %}{% set alt = output | get_metadata("alt", "image/png") %}
{{- super() | replace("<img", '<img alt="' ~ (alt | escape_html) ~ '"' if alt else "<img", 1) }}
{%- endblock %}
"""


def export_html(notebook: Path, target: Path) -> Path:
    """The notebook as one HTML file that reads offline; online, its equations are typeset too.

    Figures keep the alternative text that their output's metadata has, or that is in their PNG.
    """
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)  # a slider without a kernel moves nothing
    content.metadata["title"] = notebook.stem
    for output in (o for cell in content.cells for o in cell.get("outputs", [])):
        picture = output.get("data", {}).get("image/png")
        alt = figure_caption(io.BytesIO(base64.b64decode(picture))) if picture else ""
        if alt:
            output.setdefault("metadata", {}).setdefault("image/png", {}).setdefault("alt", alt)
    exporter = HTMLExporter(extra_loaders=[DictLoader({"alt.html.j2": _ALT})], template_file="alt.html.j2")
    body, _ = exporter.from_notebook_node(content)
    body = re.sub(r'<script src="https://[^"]*require[^"]*"></script>', "", body)
    return atomic_write(target, re.sub(r'<script src="(https://[^"]*)"', r'<script async src="\1"', body))


def figure_caption(picture: Path | io.BytesIO) -> str:
    """The alternative text that `figures.save` put into a PNG; nothing when there is none."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return str(image.info.get("Description", ""))
    except OSError:
        return ""


def _rich(text: object) -> str:
    """A cell of the scorecard: its line breaks, bold words and code, and nothing else as HTML."""
    safe = re.sub(r"&lt;br ?/?&gt;|\n|\\n", "<br>", html.escape(str(text)))
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return re.sub(r"`(.+?)`", r"<code>\1</code>", safe)


def agreement(output: Path, committed: Path) -> list[tuple[str, list[str]]]:
    """Of each result that is in both folders, one sentence and the differences beyond tolerance."""
    from infocam_utils.reproduce.results import compare, read

    lines: list[tuple[str, list[str]]] = []
    for path in sorted((output / "results").glob("[0-9][0-9].json")):
        if (committed / path.name).exists():
            try:
                found = compare(read(committed / path.name), read(path))
                text = "differs from the committed numbers in" if found else "every number within tolerance"
            except ValueError as error:
                text, found = "cannot be compared", [str(error)]
            lines.append((f"{path.stem}: {text}", found))
    return lines


def _scorecard(output: Path, name: str, repository: Path) -> list[dict[Any, Any]] | str:
    """The rows of the scorecard's table, or why there are none."""
    if not (repository / "claims.yml").exists():
        return []
    from infocam_utils.reproduce import claims

    try:
        table = claims.table(claims.scorecard(repository, output, name))
    except ValueError as error:
        return str(error)
    return table.to_dict("records")


def write_index(output: Path, manifest: Mapping[str, Any], results: Path) -> Path:
    """``index.html``: what was run, whether it agrees, the scorecard, the figures.

    `results` is the folder of committed results; those of the run's name are compared with this run's, and
    in the scorecard this run's take their place.
    """
    pictures = sorted((output / "figures").glob("*.png"))
    alts = [figure_caption(picture) or picture.stem for picture in pictures]
    environment = Environment(autoescape=True)
    environment.filters["rich"] = _rich
    text = environment.from_string(_PAGE).render(
        run=manifest,
        agreement=agreement(output, results / manifest["name"]),
        scorecard=_scorecard(output, manifest["name"], results.parent),
        figures=[
            {"source": f"figures/{picture.name}", "alt": alt, "number": picture.name[:2]}
            for picture, alt in zip(pictures, alts, strict=True)
        ],
    )
    return atomic_write(output / "index.html", text + "\n")


def clean_notebook(executed: Path, source: Path) -> str:
    """The executed notebook as it is committed: outputs kept; what a machine or a moment left removed.

    The injected parameters go, so the caller must know that they equal the defaults. Cell identifiers
    come from `source`, execution counts are numbered anew.

    Raises
    ------
    ValueError
        When an output is an error, or shows a path of this machine.
    """
    notebook = nbformat.read(executed, as_version=4)
    cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for cell, original in zip(cells, nbformat.read(source, as_version=4).cells, strict=True):
        cell["id"] = original["id"]
        cell.metadata = {k: v for k, v in original.metadata.items() if k not in ("papermill", "execution")}
        if cell.cell_type != "code":
            continue
        count += bool(cell.source.strip())
        cell["execution_count"] = count if cell.source.strip() else None
        for output in cell.outputs:
            if output.output_type == "error":
                raise ValueError(f"{executed.name}: cell [{count}] ends in {output.ename}; not committed")
            if "execution_count" in output:
                output["execution_count"] = count
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        shown = json.dumps([o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs])
        for path in {str(Path.home()), str(executed.parents[1]), str(source.parents[1])} - {"/"}:
            if path in shown:
                raise ValueError(f"{executed.name}: cell [{count}] prints {path}, a path of this machine")
    notebook.cells = cells
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return str(nbformat.writes(notebook)) + "\n"
