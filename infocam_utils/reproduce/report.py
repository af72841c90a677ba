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

PAGE = Path(__file__).with_suffix(".html")

# nbconvert's own template with a figure's alternative text, which it leaves out.
_ALT = """{% extends "lab/index.html.j2" %}
{% block data_png %}{% set alt = output | get_metadata("alt", "image/png") %}
{{- super() | replace("<img", '<img alt="' ~ (alt | escape_html) ~ '"' if alt else "<img", 1) }}
{%- endblock %}
"""


def export_html(notebook: Path, target: Path) -> Path:
    """The notebook as one HTML file that needs no network: equations as MathML, no script from elsewhere.

    Figures keep the alternative text that their output's metadata has, or that is in their PNG. A widget
    goes: without a kernel it moves nothing.
    """
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    content.metadata["title"] = notebook.stem
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _typeset(cell.source)
        cell["outputs"] = [output for output in cell.get("outputs", []) if not _is_widget(output)]
        for output in cell["outputs"]:
            picture = output.get("data", {}).get("image/png")
            alt = figure_caption(io.BytesIO(base64.b64decode(picture))) if picture else ""
            if alt:
                output.setdefault("metadata", {}).setdefault("image/png", {}).setdefault("alt", alt)
        if cell.cell_type != "code":
            del cell["outputs"]
    exporter = HTMLExporter(extra_loaders=[DictLoader({"alt.html.j2": _ALT})], template_file="alt.html.j2")
    body, _ = exporter.from_notebook_node(content)
    return atomic_write(target, re.sub(r'<script[^>]* src="https://[^"]*"[^>]*>\s*</script>', "", body))


def _is_widget(output: Mapping[str, Any]) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _typeset(markdown: str) -> str:
    r"""The equations of a Markdown cell as MathML, which browsers show without a script; code is left alone.

    >>> _typeset("`$x$` is $x$")
    '`$x$` is <math xmlns="http://www.w3.org/1998/Math/MathML" ...><mrow><mi>x</mi></mrow></math>'
    """
    from latex2mathml.converter import convert

    def equation(found: re.Match[str]) -> str:
        code, block, line = found.groups()
        if code:
            return code
        tex = " ".join((block or line).split()).replace(r"\arg", r"\operatorname{arg}")
        text = convert(tex, display="block" if block else "inline")
        text = re.sub(r"(<m[io]>(log|exp|max|arg)</m[io]>)", r'\1<mspace width="0.17em" />', text)
        return text.replace("*", "&#42;").replace("_", "&#95;").replace("|", "&#124;")  # none is Markdown's

    return re.sub(
        r"(```.*?```|`[^`]*`)|\$\$(.+?)\$\$|\$([^$\n]+(?:\n[^$\n]+)?)\$", equation, markdown, flags=re.S
    )


def figure_caption(picture: Path | io.BytesIO) -> str:
    """The alternative text that `figures.save` put into a PNG; nothing when there is none."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            return str(image.info.get("Description", ""))
    except OSError:
        return ""


def _rich(text: object, title: str = "") -> str:
    """A cell of a table: its line breaks, bold words and code, a verdict as a chip, nothing else as HTML."""
    safe = re.sub(r"&lt;br ?/?&gt;|\n|\\n", "<br>", html.escape(str(text)))
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    safe = re.sub(r"`(.+?)`", r"<code>\1</code>", safe)
    if title != "Verdict":
        return safe
    kind = re.sub(r"[^a-z ]", "", safe).strip().replace(" ", "-")
    return f'<span class="chip {kind}">{safe}</span>'


def agreement(output: Path, committed: Path) -> tuple[list[tuple[str, list[str]]], int]:
    """Of each result in both folders a sentence and the differences beyond tolerance; how many numbers."""
    from infocam_utils.reproduce.results import comparable, compare, read

    lines: list[tuple[str, list[str]]] = []
    total = 0
    for path in sorted((output / "results").glob("[0-9][0-9].json")):
        if (committed / path.name).exists():
            try:
                then = read(committed / path.name)
                total += len(comparable(then))
                found = compare(then, read(path))
                text = "differs from the committed numbers in" if found else "every number within tolerance"
            except ValueError as error:
                text, found = "cannot be compared", [str(error)]
            lines.append((f"{path.stem}: {text}", found))
    return lines, total


def _claims(
    output: Path, name: str, repository: Path
) -> tuple[list[dict[Any, Any]] | str, list[dict[Any, Any]]]:
    """The scorecard's rows, or why there are none, and those of this run beside the committed."""
    if not (repository / "claims.yml").exists():
        return [], []
    from infocam_utils.reproduce import claims

    try:
        judged = claims.scorecard(repository, output, name)
        beside = claims.beside(claims.scorecard(repository), judged, name)
        return claims.table(judged).to_dict("records"), beside.to_dict("records")
    except ValueError as error:
        return str(error), []


def _groups(output: Path) -> list[dict[str, Any]]:
    """By notebook: its question, its answer from this run's rows, its figures and pages to play with."""
    from infocam_utils.reproduce import answers
    from infocam_utils.reproduce.results import read_all, select

    try:
        rows = read_all(output / "results")
    except ValueError:  # told where they are compared
        rows = None
    files = sorted(p for p in (output / "figures").glob("*.*") if p.suffix in (".png", ".html"))
    titles = {name[:2]: question for name, question in answers.NOTEBOOKS.items()}
    groups = []
    for number in sorted({file.name[:2] for file in files}):
        own = [file for file in files if file.name[:2] == number]
        answer = ""
        if number in titles and rows is not None and len(rows):
            answer = answers.answer(number, select(rows, notebook=number))
        groups.append(
            {
                "number": number,
                "title": f"{number} · {titles[number]}" if number in titles else f"Figures of {number}",
                "answer": answer,
                "figures": [
                    {"source": f"figures/{p.name}", "alt": figure_caption(p) or p.stem}
                    for p in own
                    if p.suffix == ".png"
                ],
                "pages": [f"figures/{p.name}" for p in own if p.suffix == ".html"],
            }
        )
    return groups


def write_index(output: Path, manifest: Mapping[str, Any], results: Path) -> Path:
    """``index.html``: what was run, whether it agrees, the scorecard, and by notebook answer and figures.

    `results` is the folder of committed results; those of the run's name are compared with this run's, and
    in the scorecard this run's take their place.
    """
    environment = Environment(autoescape=True)
    environment.filters["rich"] = _rich
    found, total = agreement(output, results / manifest["name"])
    scorecard, beside = _claims(output, manifest["name"], results.parent)
    text = environment.from_string(PAGE.read_text(encoding="utf-8")).render(
        run=manifest,
        agreement=found,
        total=total,
        differ=sum(len(differences) for _, differences in found),
        scorecard=scorecard,
        beside=beside,
        groups=_groups(output),
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
        page = "explorer" in cell.metadata.get(
            "tags", []
        )  # large, and another file: results/*/04_explorer.html
        cell["outputs"] = [output for output in cell.outputs if not (page or _is_widget(output))]
        for output in cell.outputs:
            if output.output_type == "error":
                raise ValueError(f"{executed.name}: cell [{count}] ends in {output.ename}; not committed")
            if "execution_count" in output:
                output["execution_count"] = count
        shown = json.dumps([o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs])
        for path in {str(Path.home()), str(executed.parents[1]), str(source.parents[1])} - {"/"}:
            if path in shown:
                raise ValueError(f"{executed.name}: cell [{count}] prints {path}, a path of this machine")
    notebook.cells = cells
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return str(nbformat.writes(notebook)) + "\n"
