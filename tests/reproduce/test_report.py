"""What a run shows: the index page, exported notebooks, and notebooks cleaned to commit."""

import base64
import io
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image, PngImagePlugin

from infocam_utils.reproduce import claims, report, results

ROOT = Path(__file__).parents[2]
MANIFEST = {
    "name": "quick",
    "command": "infocam run -p 'dataset=<b>'",
    "started": "2030-01-01T10:00:00Z",
    "finished": "2030-01-01T10:05:00Z",
    "provenance": {"platform": "Linux x86_64", "cpu": "A <fast> one", "gpu": None},
    "notebooks": {
        "01_good": {
            "status": "done",
            "seconds": 12.3,
            "profile": "quick",
            "files": ["html/01_good.html", "results/01.csv", "figures/01_a.png"],
        },
        "03_bad": {"status": "failed", "seconds": 4, "profile": "quick", "error": "ValueError: <script>"},
        "04_old": {"status": "running"},
    },
}


def write_results(folder, **numbers):
    for number, values in numbers.items():
        rows = {"metric": "accuracy", "unit": "%", "seed": range(len(values)), "value": values, "n": 10_000}
        parameters = {"profile": "quick"}
        results.write(number[1:], pd.DataFrame(rows), parameters=parameters, output_dir=folder)


def committed(tmp_path, **numbers):
    """A repository's folder of results, with those of the run quick."""
    write_results(tmp_path / "c", **numbers)
    shutil.copytree(tmp_path / "c" / "results", tmp_path / "repo" / "results" / "quick")
    return tmp_path / "repo" / "results"


def picture(alt=None):
    notes = PngImagePlugin.PngInfo()
    if alt:
        notes.add_text("Description", alt)
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "PNG", pnginfo=notes)
    return stream.getvalue()


def test_the_index_says_first_what_was_run_then_whether_it_agrees(tmp_path):
    out = tmp_path / "out"
    write_results(out, n01=[80.0, 82.0], n03=[70.0], n04=[50.0])
    folder = committed(tmp_path, n01=[80.0, 82.0], n03=[75.0])
    (out / "figures").mkdir()
    for name, alt in {"03_b": 'recall "x" < y', "01_a": "a curve", "01_none": None}.items():
        (out / "figures" / f"{name}.png").write_bytes(picture(alt))
    (out / "figures" / "05_damaged.png").write_bytes(b"none")
    (out / "figures" / "04_explorer.html").write_text("<p>sliders</p>")
    page = report.write_index(out, MANIFEST, folder).read_text()

    places = [
        page.index(text)
        for text in (
            '<span class="chip failed">1 of\n3 notebooks done</span>',
            '<span class="chip differs">1 of 2 numbers\nwithin tolerance',
            "Profile quick;\n2030-01-01T10:00:00Z to 2030-01-01T10:05:00Z;",
            "Linux x86_64, A &lt;fast&gt; one.",
            "infocam run -p &#39;dataset=&lt;b&gt;&#39;",
            "03: differs from the committed numbers in",
            "committed 75, now 70",
            '<span class="chip done">done</span>',
            "12 s",
            '<a href="html/01_good.html">html/01_good.html</a>\n<a href="results/01.csv">',
            '<span class="chip failed">failed</span>',
            "ValueError: &lt;script&gt; What it made before, if anything, is in previous/.",
            '<span class="chip running">running</span>',
            '<h2 id="of-01">01 · Why is a classifier an estimator',
            'alt="a curve"',
            "<figcaption>a curve</figcaption>",
            'alt="01_none"',
            '<h2 id="of-03">03 · Does PC-softmax',
            'alt="recall &#34;x&#34; &lt; y"',
            '<h2 id="of-04">04 · ',
            '<iframe src="figures/04_explorer.html"',
            '<h2 id="of-05">Figures of 05',
            'alt="05_damaged"',
        )
    ]
    assert places == sorted(places)
    assert "01: " not in page  # it agrees, which the first line counts
    assert "04: " not in page
    assert "<script" not in page


def test_the_index_without_anything_to_compare_with_says_so(tmp_path):
    page = report.write_index(tmp_path, MANIFEST, tmp_path / "nowhere" / "results").read_text()
    assert "no committed results of the name quick" in page
    assert "Scorecard" not in page
    assert "Figures" not in page


def test_committed_results_that_cannot_be_read_are_a_line_of_the_index(tmp_path):
    write_results(tmp_path / "out", n01=[80.0])
    folder = committed(tmp_path, n01=[80.0])
    (folder / "quick" / "01.csv").write_text("cut")
    page = report.write_index(tmp_path / "out", MANIFEST, folder).read_text()
    assert "01: cannot be compared" in page
    assert "run the notebook again" in page


def test_the_index_reads_on_a_phone_and_shows_figures_large(tmp_path):
    page = report.write_index(tmp_path, MANIFEST, tmp_path).read_text()
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    width = re.search(r"minmax\(min\((\d+)rem, 100%\), 1fr\)", page)
    assert int(width[1]) * 16 >= 560
    assert re.search(r"@media \(max-width: \d+rem\) \{\s+thead \{ display: none \}\s+table, [^}]*block", page)


def test_the_scorecard_of_the_index_has_line_breaks_and_no_markup_from_its_text(tmp_path, monkeypatch):
    (tmp_path / "claims.yml").write_text("claims: []")
    asked = []
    monkeypatch.setattr(claims, "scorecard", lambda *given: asked.append(given) or [])
    monkeypatch.setattr(claims, "beside", lambda *_: pd.DataFrame([{"This run": "1"}]))
    text = "1 < 2<br>two\nthree\\nfour `x<y` **bold**"
    monkeypatch.setattr(
        claims, "table", lambda judged: pd.DataFrame([[text, "🟡 mixed"]], columns=["B", "Verdict"])
    )
    page = report.write_index(tmp_path / "out", MANIFEST, tmp_path / "results").read_text()
    assert asked == [(tmp_path, tmp_path / "out", "quick"), (tmp_path,)]
    assert '<td data-title="Verdict"><span class="chip mixed">🟡 mixed</span></td>' in page
    assert '<td data-title="This run">1</td>' in page
    cell = "1 &lt; 2<br>two<br>three<br>four <code>x&lt;y</code> <strong>bold</strong>"
    assert f'<td data-title="B">{cell}</td>' in page
    assert "\\n" not in page

    def wrong(*_):
        raise ValueError("row x: <missing>")

    monkeypatch.setattr(claims, "scorecard", wrong)
    page = report.write_index(tmp_path / "out", MANIFEST, tmp_path / "results").read_text()
    assert "The claims cannot be judged: row x: &lt;missing&gt;" in page


def test_exported_figures_keep_their_alternative_text(tmp_path):
    outputs = [
        new_output("display_data", {"image/png": base64.b64encode(picture(alt)).decode()}, metadata=metadata)
        for alt, metadata in (("map of <birds>", {}), (None, {"image/png": {"alt": "given"}}))
    ]
    nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), tmp_path / "01_x.ipynb")
    page = report.export_html(tmp_path / "01_x.ipynb", tmp_path / "01_x.html").read_text()
    alts = re.findall(r'<img[^>]*alt="([^"]*)"', page)
    assert alts == ["map of &lt;birds&gt;", "given"]


def test_an_exported_notebook_needs_no_network_and_has_no_dead_widget(tmp_path):
    widget = {
        "text/plain": "interactive(children=(",
        "application/vnd.jupyter.widget-view+json": {"model_id": "x"},
    }
    cells = [
        new_markdown_cell("Then $$\\sum_y \\pi_y\\, s_y = 1$$ and $a_1 * b_1 * c$, but not `$HOME`."),
        new_code_cell("1", outputs=[new_output("display_data", widget)]),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_x.ipynb")
    page = report.export_html(tmp_path / "01_x.ipynb", tmp_path / "01_x.html").read_text()
    assert page.count("<math") == 2
    assert 'display="block"' in page
    assert "<em>" not in page  # the stars are the equation's
    assert "$HOME" in page
    assert "interactive(" not in page
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]* (?:src|href)=["']?(?:https?:)?//""", page)


def test_a_cleaned_notebook_shows_its_defaults_and_nothing_of_the_machine(tmp_path):
    cells = [new_markdown_cell("# Title"), new_code_cell("seeds = [0, 1]"), new_code_cell("print(1)")]
    cells[1].metadata["tags"] = ["parameters", "explorer"]
    source = tmp_path / "repo" / "notebooks" / "01_good.ipynb"
    source.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells), source)
    executed = nbformat.read(source, as_version=4)
    injected = new_code_cell("profile = 'quick'", metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, injected)
    executed.metadata["papermill"] = {"output_path": "/secret/place"}
    for number, cell in enumerate(c for c in executed.cells if c.cell_type == "code"):
        cell["execution_count"], cell["id"] = number + 1, f"other{number}"
        cell.metadata["papermill"] = {"start_time": "2030-01-01"}
        cell.metadata["execution"] = {"iopub.status.busy": "2030-01-01"}
    widget = {
        "text/plain": "interactive()",
        "application/vnd.jupyter.widget-view+json": {"model_id": "random"},
    }
    executed.cells[-1].outputs = [new_output("stream", text="1"), new_output("display_data", widget)]
    executed.cells[1].outputs = [new_output("display_data", {"text/html": "large page"})]
    path = tmp_path / "out" / "notebooks" / "01_good.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(executed, path)

    text = report.clean_notebook(path, source)
    for trace in ("injected", "papermill", "2030", "/secret", "model_id", "other"):
        assert trace not in text
    cleaned = nbformat.reads(text, as_version=4)
    nbformat.validate(cleaned)
    assert [c.source for c in cleaned.cells] == [c.source for c in nbformat.read(source, as_version=4).cells]
    assert [c.execution_count for c in cleaned.cells if c.cell_type == "code"] == [1, 2]
    assert [o.output_type for o in cleaned.cells[-1].outputs] == ["stream"]  # the widget is gone
    assert "large page" not in text
    assert cleaned.cells[1].metadata.tags == ["parameters", "explorer"]

    executed.cells[-1].outputs = [new_output("stream", text=f"in {tmp_path / 'out'}/x")]
    nbformat.write(executed, path)
    with pytest.raises(ValueError, match=r"cell \[2\] prints .* a path of this machine"):
        report.clean_notebook(path, source)
    executed.cells[-1].outputs = [new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(executed, path)
    with pytest.raises(ValueError, match=r"cell \[2\] ends in E"):
        report.clean_notebook(path, source)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_equation_of_the_notebooks_is_understood(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            made = "".join(re.findall(r"<math.*?</math>", report._typeset(cell.source), re.S))
            assert not re.findall(r"\\[a-zA-Z]+", made)
