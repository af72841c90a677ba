"""What a run shows and gives back: HTML of each notebook, the index page, notebooks cleaned to commit."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from infocam_utils.data.store import atomic_write, checkout
from infocam_utils.reproduce import claims

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;text-align:left;vertical-align:top;
border-bottom:1px solid #ccc}figure{display:inline-block;width:22rem;margin:.5rem;vertical-align:top}
img{width:100%}figcaption{font-size:.85rem}.failed,.interrupted{font-weight:bold}"""


def export_html(notebook: Path, target: Path) -> Path:
    """The notebook as one HTML file that reads offline; online, its equations are typeset too."""
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)  # a slider without a kernel moves nothing
    content.metadata["title"] = notebook.stem
    body, _ = HTMLExporter().from_notebook_node(content)
    body = re.sub(r'<script src="https://[^"]*require[^"]*"></script>', "", body)
    return atomic_write(target, re.sub(r'<script src="(https://[^"]*)"', r'<script async src="\1"', body))


def figure_caption(path: Path) -> str:
    """The alternative text that `plotting.save` put into the PNG."""
    from PIL import Image

    with Image.open(path) as image:
        return str(image.info.get("Description", path.stem))


def write_index(output: Path, manifest: Mapping[str, Any], results: Path) -> Path:
    """``index.html``: first the scorecard, then the notebooks, then the figures.

    The scorecard takes this run's records in place of the committed ones of the same name.
    """
    title = html.escape(f"infocam run {manifest['name']}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    ]
    home = checkout()
    parts.append("<h1>Scorecard</h1>")
    ledger = home / "claims.yml" if home else None
    if ledger and ledger.exists():
        books = claims.load_books(results) | claims.load_books(output / "records", prefix=manifest["name"])
        table = claims.table(claims.judge(claims.load_ledger(ledger), books))
        parts.append(table.reset_index().to_html(index=False, border=0))
    parts.append(f"<h1>Notebooks</h1><p>{title}, {manifest['started']}</p><table>")
    for name, entry in manifest["notebooks"].items():
        link = (
            f'<a href="html/{name}.html">{name}</a>' if (output / "html" / f"{name}.html").exists() else name
        )
        records = entry.get("records")
        more = f'<a href="{records}">records</a>' if records else html.escape(entry.get("error", ""))
        parts.append(
            f"<tr><td>{link}<td class={entry['status']}>{entry['status']}"
            f"<td>{entry['seconds']:.0f} s<td>{more}"
        )
    parts.append(
        '</table><p><a href="manifest.json">manifest.json</a>: versions, hardware, seeds, data, times</p>'
    )
    figures = sorted((output / "figures").glob("*.png"))
    if figures:
        parts.append("<h1>Figures</h1>")
    for figure in figures:
        alt = html.escape(figure_caption(figure), quote=True)
        source = f"figures/{figure.name}"
        image = f'<a href="{source}"><img src="{source}" alt="{alt}"></a>'
        parts.append(f"<figure>{image}<figcaption>{alt}</figcaption></figure>")
    return atomic_write(output / "index.html", "\n".join(parts) + "\n")


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
