"""The runner on tiny notebooks: what is refused, what is kept, what is not run again, and an interrupt."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from infocam_utils.reproduce import report as reports
from infocam_utils.reproduce import runner as pipeline
from infocam_utils.reproduce import runner as plans
from infocam_utils.reproduce.runner import PlanError

RECORDS = """from infocam_utils.records import RecordBook
book = RecordBook("01_good", profile, "digits", seeds, {"epochs": epochs})
book.measure("digits/accuracy", [90.0 + s for s in seeds], unit="%")
book.write()
print("mean", book.get("digits/accuracy").value)
import ipywidgets
ipywidgets.interact(lambda depth: print("depth is", depth), depth=7);"""
GOOD = """profile = "quick"
seeds = [0, 1]
epochs = 2
rate = 0.1
dataset = "digits"
weights = None"""


def write_notebook(path, *sources):
    cells = [new_markdown_cell("# Title")] + [new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["parameters"]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "repo" / "notebooks"
    (where / "profiles").mkdir(parents=True)
    write_notebook(where / "01_good.ipynb", GOOD, RECORDS)
    write_notebook(
        where / "02_bad.ipynb", "seeds = [0]\ndepth = 1", "kept = 1\nprint('kept')", "1 / 0", "print('never')"
    )
    (where / "profiles" / "quick.yaml").write_text("common: {seeds: [0, 1]}\n01_good: {epochs: 3}\n")
    (where / "profiles" / "plain.yaml").write_text("")
    return where


def run(plan, folder, **options):
    shown = io.StringIO()
    output = folder.parents[1] / "out"
    manifest = pipeline.run(
        plan, output, name="quick", results=folder.parent / "results", show=pipeline.Display(shown), **options
    )
    return manifest, output, shown.getvalue()


def test_a_plan_is_profile_then_overrides_then_defaults(folder):
    good, bad = plans.plan(profile="quick", overrides={"rate": "1e-3", "dataset": "7"}, folder=folder)
    assert good.parameters == {
        "seeds": [0, 1],
        "epochs": 3,
        "rate": 0.001,
        "dataset": "7",
        "profile": "quick",
    }
    assert bad.parameters == {"seeds": [0, 1]}
    assert good.defaults["weights"] is None
    (only,) = plans.plan(["01"], "plain", folder=folder)
    assert only.parameters == {"profile": "plain"}


@pytest.mark.parametrize(
    ("names", "profile", "overrides", "message"),
    [
        (["01_god"], "quick", {}, "unknown notebook '01_god'; did you mean 01_good"),
        (["0"], "quick", {}, "unknown notebook '0'; there are 01_good, 02_bad"),
        ([], "quik", {}, "unknown profile 'quik'; did you mean quick"),
        ([], "quick", {"epoch": "3"}, "unknown parameter 'epoch'; did you mean epochs"),
        (["01"], "quick", {"depth": "3"}, "unknown parameter 'depth'"),
        ([], "quick", {"epochs": "2.5"}, "'epochs' must be int like its default 2, was 2.5"),
        ([], "quick", {"epochs": "true"}, "'epochs' must be int like its default 2, was True"),
        ([], "quick", {"rate": "fast"}, "'rate' must be float like its default 0.1, was 'fast'"),
        ([], "quick", {"seeds": "[0, a]"}, r"'seeds\[1\]' must be int like its default 0, was 'a'"),
        ([], "quick", {"seeds": "3"}, "'seeds' must be list"),
        ([], "quick", {"seeds": "[1"}, "'seeds' must be list"),
    ],
)
def test_what_does_not_exist_or_fit_is_refused_by_name(folder, names, profile, overrides, message):
    with pytest.raises(PlanError, match=message):
        plans.plan(names, profile, overrides, folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("commn: {seeds: [0]}", "unknown notebook 'commn'"),
        ("common: {sedes: [0]}", "unknown parameter 'sedes'; did you mean seeds"),
        ("01_good: {epoch: 1}", "unknown parameter 'epoch' of 01_good; did you mean epochs"),
        ("01_good: 3", "must map notebooks"),
        ("[", "is not YAML"),
    ],
)
def test_a_wrong_profile_is_refused(folder, text, message):
    (folder / "profiles" / "quick.yaml").write_text(text)
    with pytest.raises(PlanError, match=message):
        plans.plan(profile="quick", folder=folder)


def test_a_default_must_be_a_literal(folder):
    write_notebook(folder / "03_computed.ipynb", "size = 2 * 32", "size")
    with pytest.raises(PlanError, match="default of 'size' must be a literal"):
        plans.plan(folder=folder)


def test_null_is_taken_where_the_comment_says_what_it_means(folder):
    write_notebook(
        folder / "03_optional.ipynb", "limit = 1000  # images; None: all\ndepth = 2  # layers", "limit"
    )
    (plan,) = plans.plan(["03"], "plain", {"limit": "null"}, folder)
    assert plan.parameters == {"limit": None}
    with pytest.raises(PlanError, match="'depth' must be int like its default 2, was None"):
        plans.plan(["03"], "plain", {"depth": "null"}, folder)


def test_an_empty_folder_says_what_to_give(tmp_path):
    with pytest.raises(PlanError, match=r"no notebooks in .*--notebooks"):
        plans.notebook_folder(tmp_path)


def test_a_run_keeps_what_is_done_names_what_failed_and_resumes(folder, monkeypatch):
    # The package may be edited while its tests run; that it is in the key is tested below.
    monkeypatch.setattr(pipeline, "fingerprint", lambda *files: "package")
    plan = plans.plan(folder=folder)
    manifest, output, shown = run(plan, folder)
    states = {name: entry["status"] for name, entry in manifest["notebooks"].items()}
    assert states == {"01_good": "done", "02_bad": "failed"}
    log = output / "logs" / "02_bad.log"
    assert f"02_bad failed in cell [4]: ZeroDivisionError: division by zero\n  log: {log}" in shown
    assert "ZeroDivisionError" in log.read_text()
    assert "\x1b" not in log.read_text()

    failed = nbformat.read(output / "failed" / "02_bad.ipynb", as_version=4)
    assert "kept" in json.dumps(failed)
    assert not (output / "notebooks" / "02_bad.ipynb").exists()
    done = nbformat.read(output / "notebooks" / "01_good.ipynb", as_version=4)
    assert done.cells[-1].outputs[0].text.startswith("mean 90.5\n")
    assert "depth is 7" in json.dumps(done)  # what a slider shows is kept, and clears nothing
    assert not (output / "failed" / "01_good.ipynb").exists()

    written = json.loads((output / "manifest.json").read_text())
    assert written["notebooks"]["01_good"]["parameters"]["epochs"] == 3
    assert written["notebooks"]["01_good"]["seeds"] == [0, 1]
    assert {"versions", "cpu", "commit"} <= written["provenance"].keys()
    index = (output / "index.html").read_text()
    assert (
        index.index("Scorecard") < index.index('href="html/01_good.html"') < index.index("ZeroDivisionError")
    )
    page = (output / "html" / "01_good.html").read_text()
    assert "mean 90.5" in page
    assert '<script src="http' not in page  # a page must not wait for a network

    # Again: the good one is left as it is, the failed one is tried.
    before = (output / "notebooks" / "01_good.ipynb").stat().st_mtime_ns
    write_notebook(folder / "02_bad.ipynb", "seeds = [0]\ndepth = 1", "print(len(seeds))")
    manifest, output, shown = run(plan, folder)
    assert "01_good is done and unchanged" in shown
    assert (output / "notebooks" / "01_good.ipynb").stat().st_mtime_ns == before
    assert manifest["notebooks"]["02_bad"]["status"] == "done"
    assert not log.exists()


def test_the_key_follows_cells_parameters_profile_data_and_records(folder, tmp_path, monkeypatch):
    root, out, results = tmp_path / "data", tmp_path / "out", tmp_path / "results"
    monkeypatch.setattr(
        pipeline, "fingerprint", lambda *files: repr([f.read_bytes() for f in files if f.suffix == ".json"])
    )

    def key(**overrides):
        (plan,) = plans.plan(["01"], "quick", overrides, folder)
        return pipeline.run_key(plan, root, out, results)

    first = key()
    assert key() == first
    assert key(rate="0.2") != first
    (root / "birds" / "images").mkdir(parents=True)
    assert key() == first  # data that no parameter names
    with_birds = key(dataset="birds")
    (root / "birds" / "images" / "1.jpg").write_bytes(b"x")
    assert key(dataset="birds") != with_birds

    write_notebook(folder / "01_good.ipynb", GOOD, RECORDS + "\nprint(1)")
    changed = key()
    assert changed != first
    write_notebook(folder / "01_good.ipynb", GOOD + "\nresults_dir = None", RECORDS + "\nprint(1)")
    reading = key()
    (results / "quick").mkdir(parents=True)
    (results / "quick" / "03.json").write_text("{}")
    assert key() != reading


def test_data_used_carries_the_checksum_that_the_download_verified(tmp_path):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "images.txt").write_text("1 a.jpg")
    (tmp_path / "birds.json").write_text('{"sha256": "abc"}')
    used = pipeline.data_used({"dataset": "digits,birds", "seeds": [0], "data_dir": str(tmp_path)}, tmp_path)
    assert list(used) == ["birds"]
    assert (used["birds"]["files"], used["birds"]["bytes"], used["birds"]["sha256"]) == (1, 7, "abc")


def test_two_runs_cannot_write_to_one_folder(folder, tmp_path):
    with (
        pipeline._only_run_in(tmp_path / "out"),
        pytest.raises(pipeline.RunError, match="another run is writing"),
    ):
        run(plans.plan(folder=folder), folder)


def test_plain_lines_are_few_and_a_terminal_has_one_line(monkeypatch):
    stream = io.StringIO()
    show = pipeline.Display(stream)
    for epoch in range(50):
        show.update("01  cell 3/9", f"epoch {epoch}/50")
    show.update("01  cell 4/9", "")
    assert stream.getvalue().splitlines() == ["01  cell 3/9  epoch 0/50", "01  cell 4/9"]
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(stream, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((30, 20)))
    show = pipeline.Display(stream)
    show.update("01  cell 3/9", "epoch 1/50 and a text that is too long")
    show.line("01 done")
    assert stream.getvalue() == "\r\x1b[K01  cell 3/9  epoch 1/50 and \r\x1b[K01 done\n"


def test_progress_shows_the_last_whole_line(tmp_path):
    file = tmp_path / "p"
    assert pipeline._progress(file) == ""
    file.write_text(
        '{"text": "training", "done": 1, "total": 3}\n{"text": "training", "done": 2, "total": 3}\n'
    )
    assert pipeline._progress(file) == "training 2/3"
    file.write_text('{"text": "drawing", "done": null, "total": null}\n')
    assert pipeline._progress(file) == "drawing"


def test_a_cleaned_notebook_shows_its_defaults_and_nothing_of_the_machine(folder, tmp_path):
    source = folder / "01_good.ipynb"
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
    executed.cells[-1].outputs = [nbformat.v4.new_output("execute_result", widget, execution_count=9)]
    path = tmp_path / "out" / "notebooks" / "01_good.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(executed, path)

    text = reports.clean_notebook(path, source)
    for trace in ("injected", "papermill", "2030", "/secret", "model_id", "other"):
        assert trace not in text
    cleaned = nbformat.reads(text, as_version=4)
    nbformat.validate(cleaned)
    assert [c.source for c in cleaned.cells] == [c.source for c in nbformat.read(source, as_version=4).cells]
    assert [c.execution_count for c in cleaned.cells if c.cell_type == "code"] == [1, 2]
    assert cleaned.cells[-1].outputs[0].execution_count == 2
    assert cleaned.cells[1].metadata.tags == ["parameters"]

    executed.cells[-1].outputs = [nbformat.v4.new_output("stream", text=f"in {tmp_path / 'out'}/x")]
    nbformat.write(executed, path)
    with pytest.raises(ValueError, match=r"cell \[2\] prints .* a path of this machine"):
        reports.clean_notebook(path, source)
    executed.cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    nbformat.write(executed, path)
    with pytest.raises(ValueError, match=r"cell \[2\] ends in E"):
        reports.clean_notebook(path, source)


def test_an_interrupt_ends_the_cell_keeps_the_rest_and_says_how_to_go_on(folder, tmp_path):
    marker = tmp_path / "cleaned-up"
    slow = f"""import time
try:
    print("started", flush=True)
    open({str(tmp_path / "started")!r}, "w").close()
    time.sleep(300)
finally:
    open({str(marker)!r}, "w").close()"""
    write_notebook(folder / "02_bad.ipynb", "seeds = [0]", slow)
    write_notebook(folder / "03_next.ipynb", "seeds = [0]", "1")
    command = [sys.executable, "-m", "infocam_utils", "run", "02", "03", "--notebooks", str(folder)]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "started").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert marker.exists()  # the cell had the time to save its state
    assert "the same command goes on from there" in shown
    assert "Traceback" not in shown
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {name: e["status"] for name, e in manifest["notebooks"].items()} == {"02_bad": "interrupted"}
    assert "started" in (tmp_path / "out" / "failed" / "02_bad.ipynb").read_text()
    assert (tmp_path / "out" / "index.html").exists()
