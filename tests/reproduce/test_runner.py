"""The runner on tiny notebooks: what is refused, kept and not run again, and what a kill leaves."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from infocam_utils.data import store
from infocam_utils.reproduce import results, runner
from infocam_utils.reproduce.runner import PlanError

WRITES = """import pandas as pd
from infocam_utils.reproduce import results
rows = pd.DataFrame({"metric": "accuracy", "unit": "%", "seed": seeds, "value": [80.0 + epochs] * len(seeds)})
results.write("01_good", rows, parameters=results.parameters(globals()))
print("mean", rows["value"].mean())
import ipywidgets
ipywidgets.interact(lambda depth: print("depth is", depth), depth=7);"""
GOOD = """profile = "quick"
seeds = [0, 1]
epochs = 2
rate = 0.1
dataset = "digits"
weights = None"""
FIELDS = {"dataset": str, "weights": str | None, "stride": int | None, "lr": float}
FIELDS |= {"flip": bool, "loss": Literal["softmax", "pc"], "passes": int}
FAST = "seeds = [0]\ndepth = 1"


def write_notebook(path, *sources):
    cells = [new_markdown_cell("# Title")] + [new_code_cell(source) for source in sources]
    cells[1].metadata["tags"] = ["parameters"]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "repo" / "notebooks"
    (where / "profiles").mkdir(parents=True)
    write_notebook(where / "01_good.ipynb", GOOD, WRITES)
    write_notebook(where / "02_bad.ipynb", FAST, "kept = 1\nprint('kept')", "1 / 0", "print('never')")
    (where / "profiles" / "quick.yaml").write_text("common: {seeds: [0, 1]}\n01_good: {epochs: 3}\n")
    (where / "profiles" / "plain.yaml").write_text("")
    return where


@pytest.fixture
def recipes(folder):
    write_notebook(folder / "03_recipe.ipynb", "seeds = [0]\nlimit = 10\nrecipe = {'passes': 100}", "1")
    return folder


def run(plan, folder, **options):
    shown = io.StringIO()
    output = folder.parents[1] / "out"
    manifest = runner.run(
        plan, output, name="quick", results=folder.parent / "results", show=runner.Display(shown), **options
    )
    return manifest, output, shown.getvalue()


def rows(*values):
    return pd.DataFrame(
        {"metric": "accuracy", "unit": "%", "seed": range(len(values)), "value": list(values)}
    )


@pytest.fixture
def executed(monkeypatch):
    """Instead of a kernel: writes one result and one figure; `fails` and `killed` make it end otherwise."""

    class Executed:
        names: list = []
        fails = killed = False

        def __call__(self, plan, partial, kernel_log, environment, watch):
            self.names.append(plan.name)
            output = Path(environment["INFOCAM_OUTPUT"])
            assert not list((output / "results").glob(f"{plan.name[:2]}.*"))  # nothing of an earlier run
            results.write(plan.name, rows(80.0), parameters=plan.in_force, output_dir=output)
            (output / "figures").mkdir(exist_ok=True)
            (output / "figures" / f"{plan.name[:2]}_curve.png").write_bytes(b"")
            if self.fails:
                raise RuntimeError("no more")
            if self.killed:
                raise KeyboardInterrupt
            shutil.copy(plan.path, partial)

    made = Executed()
    made.names = []
    monkeypatch.setattr(runner, "execute", made)
    return made


def kill(plan, folder, **options):
    """A run that ends in the middle of its first notebook without a chance to tidy up."""

    class Killed(BaseException):
        pass

    def killed(plan, output, environment, show):
        results.write(plan.name, rows(1.0), parameters={}, output_dir=output)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_notebook", killed)
        with pytest.raises(Killed):
            run(plan, folder, **options)


# What is planned


def test_a_plan_is_profile_then_overrides_then_defaults(folder):
    good, bad = runner.plan(profile="quick", overrides={"rate": "1e-3", "dataset": "7"}, folder=folder)
    given = {"seeds": [0, 1], "epochs": 3, "rate": 0.001, "dataset": "7", "profile": "quick"}
    assert good.parameters == given
    assert bad.parameters == {"seeds": [0, 1]}
    assert good.in_force == given | {"weights": None}
    (only,) = runner.plan(["01"], "plain", folder=folder)
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
        ([], "quick", {"seeds": "[0, a]"}, r"'seeds' must be list\[int\] like .*, was \[0, 'a'\]"),
        ([], "quick", {"seeds": "3"}, r"'seeds' must be list\[int\]"),
        ([], "quick", {"seeds": "[1"}, r"'seeds' must be list\[int\]"),
        ([], "quick", {"seeds": "[0, 0]"}, r"seeds must be distinct, and at least one, were \[0, 0\]"),
        ([], "quick", {"seeds": "[]"}, r"seeds must be distinct, and at least one, were \[\]"),
        ([], "quick", {"stride": "16"}, "unknown parameter 'stride'"),  # no notebook here has a recipe
    ],
)
def test_what_does_not_exist_or_fit_is_refused_by_name(folder, names, profile, overrides, message):
    with pytest.raises(PlanError, match=message):
        runner.plan(names, profile, overrides, folder, recipe_fields=FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("commn: {seeds: [0]}", "unknown notebook 'commn'"),
        ("common: {sedes: [0]}", "unknown parameter 'sedes'; did you mean seeds"),
        ("01_good: {epoch: 1}", "for 01_good an unknown parameter 'epoch'; did you mean epochs"),
        ("01_good: 3", "must map notebooks"),
        ("[", "is not YAML"),
    ],
)
def test_a_wrong_profile_is_refused(folder, text, message):
    (folder / "profiles" / "quick.yaml").write_text(text)
    with pytest.raises(PlanError, match=message):
        runner.plan(profile="quick", folder=folder)


def test_fields_of_the_recipe_are_merged_over_its_default_by_profile_and_by_hand(recipes):
    (recipes / "profiles" / "quick.yaml").write_text(
        "common: {weights: imagenet, epochs: 9}\n03_recipe: {lr: 1, recipe: {flip: false}}"
    )
    given = {"stride": "16", "lr": "1e-3", "loss": "pc"}
    (planned,) = runner.plan(["03"], "quick", given, recipes, recipe_fields=FIELDS)
    recipe = {"passes": 100, "weights": "imagenet", "lr": 0.001, "flip": False, "stride": 16, "loss": "pc"}
    assert planned.parameters == {"recipe": recipe}
    good, _, other = runner.plan(
        [], "plain", {"weights": "null", "stride": "8"}, recipes, recipe_fields=FIELDS
    )
    assert good.parameters == {"profile": "plain", "weights": None}  # its own, and it takes no stride
    assert other.parameters == {"recipe": {"passes": 100, "weights": None, "stride": 8}}
    (whole,) = runner.plan(["03"], "plain", {"recipe": "{stride: 4}"}, recipes, recipe_fields=FIELDS)
    assert whole.parameters == {"recipe": {"passes": 100, "stride": 4}}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"strid": "16"}, "unknown parameter 'strid'; did you mean stride"),
        ({"limits": "16"}, "unknown parameter 'limits'; did you mean limit"),
        ({"stride": "wide"}, "'stride' must be int or None, was 'wide'"),
        ({"passes": "1.5"}, "'passes' must be int or None, was 1.5"),
        ({"flip": "1"}, "'flip' must be bool or None, was 1"),
        ({"loss": "hinge"}, "'loss' must be .*softmax.* or None, was 'hinge'"),
        ({"recipe": "{strid: 3}"}, "the recipe has no field 'strid'; did you mean stride"),
        ({"recipe": "3"}, "'recipe' must be dict like its default"),
    ],
)
def test_a_wrong_field_of_the_recipe_is_refused_before_anything_runs(recipes, overrides, message):
    with pytest.raises(PlanError, match=message):
        runner.plan(["03"], "plain", overrides, recipes, recipe_fields=FIELDS)


def test_a_default_must_be_a_literal(folder):
    write_notebook(folder / "03_computed.ipynb", "size = 2 * 32", "size")
    with pytest.raises(PlanError, match="default of 'size' is no literal"):
        runner.plan(folder=folder)
    write_notebook(folder / "03_computed.ipynb", "size: list = [\n    2,\n]  # as in a = b", "size")
    assert runner.read_parameters(folder / "03_computed.ipynb") == {"size": runner.Parameter([2], list[int])}


def test_null_is_taken_where_the_comment_says_what_it_means(folder):
    write_notebook(
        folder / "03_optional.ipynb", "limit = 1000  # images; None: all\ndepth = 2  # layers", "limit"
    )
    (plan,) = runner.plan(["03"], "plain", {"limit": "null"}, folder)
    assert plan.parameters == {"limit": None}
    with pytest.raises(PlanError, match="'depth' must be int like its default 2, was None"):
        runner.plan(["03"], "plain", {"depth": "null"}, folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "\xff\xfe",
        '{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        ["seeds = [0, 1"],
        ["seeds = [0]\nfor"],
    ],
)
def test_a_broken_notebook_is_one_line_and_only_when_it_is_asked_for(folder, content):
    path = folder / "03_broken.ipynb"
    if isinstance(content, list):
        write_notebook(path, *content)
    else:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(PlanError, match=r"03_broken.ipynb or its parameters cell cannot be read") as caught:
        runner.plan(folder=folder)
    assert "\n" not in str(caught.value)
    (folder / "profiles" / "quick.yaml").write_text("common: {depth: 1}")  # of 02_bad, so that all are read
    (good,) = runner.plan(["01"], folder=folder)
    assert good.name == "01_good"


def test_two_notebooks_of_one_number_do_not_run_together(folder):
    shutil.copy(folder / "01_good.ipynb", folder / "01_mine.ipynb")
    with pytest.raises(PlanError, match=r"01_good and 01_mine would both write results/01.csv"):
        runner.plan(folder=folder)
    assert len(runner.plan(["01_mine"], folder=folder)) == 1


def test_an_empty_folder_says_what_to_give(tmp_path):
    with pytest.raises(PlanError, match=r"no notebooks in .*--notebooks"):
        runner.plan(folder=tmp_path)


def test_data_paths_are_made_absolute_from_the_callers_folder(recipes, tmp_path, monkeypatch):
    root, here = tmp_path / "data", tmp_path / "here"
    for made in (root / "birds", here / "birds", here / "cubok", here / "digits", here / "plain"):
        made.mkdir(parents=True)
    (here / "net.pt").write_bytes(b"x")
    monkeypatch.chdir(here)

    def planned(**overrides):
        options = {"recipe_fields": FIELDS, "known_data": ["digits"], "data_dir": root}
        return [p.parameters for p in runner.plan(["01", "03"], "plain", overrides, recipes, **options)]

    good, other = planned(dataset="cubok", weights="net.pt")
    assert (good["dataset"], good["weights"]) == (str(here / "cubok"), str(here / "net.pt"))
    assert other["recipe"] == {"passes": 100, "dataset": str(here / "cubok"), "weights": str(here / "net.pt")}
    assert good["profile"] == "plain"  # which is a folder here, but no data
    assert planned(dataset="birds")[0]["dataset"] == "birds"  # by its name in the data folder
    assert planned(dataset="./birds")[0]["dataset"] == str(here / "birds")
    assert planned(dataset="cubok/")[0]["dataset"] == str(here / "cubok")
    assert planned(dataset=str(here / "cubok"))[0]["dataset"] == str(here / "cubok")
    assert planned(dataset="digits,cubok")[0]["dataset"] == f"digits,{here / 'cubok'}"
    assert planned(dataset="nowhere")[0]["dataset"] == "nowhere"


def test_a_run_is_planned_again_from_its_record_alone(recipes, tmp_path):
    given = {"stride": "16", "limit": "7", "lr": "0.5", "seeds": "[4, 5]"}
    (first,) = runner.plan(["03"], "quick", given, recipes, recipe_fields=FIELDS)
    path = results.write(first.name, rows(80.0), parameters=first.in_force, output_dir=tmp_path)
    record = results.read(path)
    # What the profile and the notebook's own recipe say by then does not matter.
    (recipes / "profiles" / "quick.yaml").unlink()
    write_notebook(
        recipes / "03_recipe.ipynb", "seeds = [0]\nlimit = 9\nrecipe = {'passes': 1, 'flip': True}", "1"
    )
    (again,) = runner.plan(record=record, folder=recipes, recipe_fields=FIELDS)
    assert again.name == "03_recipe"
    assert again.in_force == record.parameters
    (other,) = runner.plan([], "", {"limit": "8"}, recipes, record=record, recipe_fields=FIELDS)
    assert other.in_force == record.parameters | {"limit": 8}
    write_notebook(recipes / "03_recipe.ipynb", "seeds = [0]\nrecipe = {}", "1")
    with pytest.raises(PlanError, match="the record sets for 03_recipe an unknown parameter 'limit'"):
        runner.plan(record=record, folder=recipes, recipe_fields=FIELDS)


# What is run, kept and not run again


def test_a_run_keeps_what_is_done_names_what_failed_and_resumes(folder, monkeypatch):
    # The package may be edited while its tests run; that it is in the key is tested below.
    monkeypatch.setattr(runner, "code_digest", lambda: "package")
    plan = runner.plan(folder=folder)
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
    assert done.cells[-1].outputs[0].text.startswith("mean 83.0\n")
    assert "depth is 7" in json.dumps(done)  # what a slider shows is kept, and clears nothing
    assert not (output / "failed" / "01_good.ipynb").exists()
    assert results.read(output / "results" / "01.json").parameters["epochs"] == 3

    written = json.loads((output / "manifest.json").read_text())
    entry = written["notebooks"]["01_good"]
    assert (entry["parameters"]["epochs"], entry["parameters"]["rate"]) == (3, 0.1)
    assert entry["files"][:2] == ["notebooks/01_good.ipynb", "html/01_good.html"]
    assert entry["files"][2:] == ["results/01.csv", "results/01.json"]
    assert {"versions", "cpu", "commit"} <= written["provenance"].keys()
    page = (output / "html" / "01_good.html").read_text()
    assert "mean 83.0" in page
    assert '<script src="http' not in page  # a page must not wait for a network

    # Again: the good one is left as it is, the failed one is tried.
    before = (output / "notebooks" / "01_good.ipynb").stat().st_mtime_ns
    write_notebook(folder / "02_bad.ipynb", "seeds = [0]\ndepth = 1", "print(len(seeds))")
    manifest, output, shown = run(plan, folder)
    assert "01_good is done and unchanged" in shown
    assert (output / "notebooks" / "01_good.ipynb").stat().st_mtime_ns == before
    assert manifest["notebooks"]["02_bad"]["status"] == "done"
    assert not log.exists()


@pytest.mark.parametrize("options", [{}, {"fresh": True}])
def test_a_killed_run_again_loses_nothing_and_is_not_taken_for_done(folder, executed, options):
    (plan,) = runner.plan(["01"], folder=folder)
    _, output, _ = run([plan], folder)
    finished = (output / "results" / "01.json").read_text()
    (other,) = runner.plan(["01"], "quick", {"epochs": "9"}, folder)
    for _ in range(2):  # killed, and killed once more
        kill([plan] if options else [other], folder, **options)
        entry = json.loads((output / "manifest.json").read_text())["notebooks"]["01_good"]
        assert entry["status"] == "running"
        assert (output / "previous" / "results" / "01.json").read_text() == finished
        assert (output / "previous" / "notebooks" / "01_good.ipynb").exists()
    _, _, shown = run([plan], folder)
    assert "unchanged" not in shown
    assert executed.names == ["01_good", "01_good"]
    assert results.read(output / "results" / "01.json").rows["value"].tolist() == [80.0]
    assert not list((output / "previous").rglob("*.*"))
    assert "01_good is done and unchanged" in run([plan], folder)[2]


def test_a_kill_while_files_are_put_aside_is_mended(folder, executed, monkeypatch):
    (plan,) = runner.plan(["01"], folder=folder)
    _, output, _ = run([plan], folder)
    finished = (output / "results" / "01.json").read_text()
    moved, replace = [], os.replace

    def stops(source, target):
        if "previous" in str(target):
            if moved:
                raise SystemExit
            moved.append(source)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stops)
        with pytest.raises(SystemExit):
            run([plan], folder, fresh=True)
    assert (output / "results" / "01.json").exists()
    kill([plan], folder)
    assert (output / "previous" / "results" / "01.json").read_text() == finished


@pytest.mark.parametrize(("end", "status"), [("fails", "failed"), ("killed", "interrupted")])
def test_a_failed_or_interrupted_run_leaves_no_result_of_other_parameters(
    folder, executed, monkeypatch, end, status
):
    (plan,) = runner.plan(["01"], folder=folder)
    _, output, _ = run([plan], folder)
    finished = (output / "results" / "01.json").read_text()
    (other,) = runner.plan(["01"], "quick", {"epochs": "9"}, folder)
    setattr(executed, end, True)
    if end == "killed":
        monkeypatch.setattr(runner, "_watch", interrupted)
    entry = run([other], folder)[0]["notebooks"]["01_good"]
    assert entry["status"] == status
    made = ["results/01.csv", "results/01.json", "figures/01_curve.png", "notebooks/01_good.ipynb"]
    for file in made:
        assert not (output / file).exists()  # so that no later notebook shows them
        assert (output / "previous" / file).exists()
    assert (output / "previous" / "results" / "01.json").read_text() == finished
    # Not done, whatever lies there: not even with the files back in place and the same key.
    shutil.copytree(output / "previous", output, dirs_exist_ok=True)
    assert runner.intact(output, made)
    memory = runner._Memory(output, {"notebooks": {"01_good": entry | {"files": made}}})
    assert not memory.is_done("01_good", entry["key"])


def interrupted(watch, *_):
    assert watch.finished.wait(30)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("results/01.json", None),
        ("results/01.json", "{"),
        ("results/01.csv", "metric,unit,value\n"),
        ("html/01_good.html", None),
        ("figures/01_curve.png", None),
        ("notebooks/01_good.ipynb", None),
        ("notebooks/01_good.ipynb", '{"cells": ['),
    ],
)
def test_done_needs_every_file_that_the_manifest_names(folder, executed, file, content):
    (plan,) = runner.plan(["01"], folder=folder)
    _, output, _ = run([plan], folder)
    (output / file).unlink()
    if content is not None:
        (output / file).write_text(content)
    entry = run([plan], folder)[0]["notebooks"]["01_good"]
    assert executed.names == ["01_good", "01_good"]
    assert runner.intact(output, entry["files"])


def test_results_that_cannot_be_read_are_a_failure(folder, executed, monkeypatch):
    def half(plan, partial, kernel_log, environment, watch):
        executed(plan, partial, kernel_log, environment, watch)
        (Path(environment["INFOCAM_OUTPUT"]) / "results" / "01.csv").write_text("half")

    monkeypatch.setattr(runner, "execute", half)
    manifest, output, shown = run(runner.plan(["01"], folder=folder), folder)
    assert manifest["notebooks"]["01_good"]["status"] == "failed"
    assert "run the notebook again" in shown
    assert not (output / "results" / "01.csv").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        '{"notebooks": []}',
        '{"notebooks": {"01_good": 3}}',
        '{"notebooks": {"01_good": {"status": "done", "files": 3}}}',
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_manifest_of_another_shape_counts_as_none(folder, executed, content):
    (plan,) = runner.plan(["01"], folder=folder)
    _, output, _ = run([plan], folder)
    (output / "manifest.json").write_text(content.replace("01_good", "02_bad"), encoding="latin-1")
    run([plan], folder)
    (output / "manifest.json").write_text(content, encoding="latin-1")
    manifest, _, _ = run([plan], folder)
    assert manifest["notebooks"]["01_good"]["status"] == "done"
    assert executed.names == ["01_good"] * 3


def test_a_fresh_run_stays_fresh_until_it_is_through(folder, executed, monkeypatch):
    seen = []

    def noted(plan, partial, kernel_log, environment, watch):
        seen.append(environment.get("INFOCAM_FRESH_SINCE"))
        executed(plan, partial, kernel_log, environment, watch)

    monkeypatch.setattr(runner, "execute", noted)
    monkeypatch.delenv("INFOCAM_FRESH_SINCE", raising=False)
    plan = runner.plan(folder=folder)
    _, output, _ = run(plan, folder)
    kill(plan, folder, fresh=True)
    states = json.loads((output / "manifest.json").read_text())["notebooks"]
    assert [entry["status"] for entry in states.values()] == ["running", "waiting"]
    assert not (output / "results" / "02.json").exists()
    run(plan, folder)
    assert seen[:2] == [None, None]
    assert len(seen) == 4
    assert seen[2] == seen[3] is not None


# Where it may write


def test_an_output_that_would_overwrite_the_notebooks_is_refused(folder):
    plan = runner.plan(folder=folder)
    (folder.parent / "manifest.json").write_text("{}")
    before = {p.name: p.read_bytes() for p in folder.glob("*.ipynb")}
    for output in (folder.parent, folder, folder / ".." / "."):
        with pytest.raises(PlanError, match=r"would overwrite .*; give another folder"):
            runner.run(plan, output, name="quick", results=folder.parent / "results")
    assert {p.name: p.read_bytes() for p in folder.glob("*.ipynb")} == before


def test_an_output_with_other_files_and_no_manifest_is_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    with pytest.raises(PlanError, match=r"has other files and no manifest.json of a run; give a new"):
        run(runner.plan(folder=folder), folder)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_two_runs_cannot_write_to_one_folder(folder, tmp_path):
    with (
        runner._only_run_in(tmp_path / "out", []),
        pytest.raises(OSError, match="another run is writing"),
    ):
        run(runner.plan(folder=folder), folder)


# The key


def test_the_key_follows_cells_parameters_profile_data_and_results(folder, tmp_path, monkeypatch):
    root, out, committed = tmp_path / "data", tmp_path / "out", tmp_path / "results"
    monkeypatch.setattr(runner, "code_digest", lambda: "package")
    monkeypatch.chdir(tmp_path)

    def key(profile="quick", **overrides):
        (plan,) = runner.plan(["01"], profile, {"profile": "same", **overrides}, folder, data_dir=root)
        return runner.run_key(plan, root, out, committed)

    first = key()
    assert key() == first
    assert key(rate="0.2") != first
    (folder / "profiles" / "copy.yaml").write_text((folder / "profiles" / "quick.yaml").read_text())
    assert key("copy") != first  # the same parameters under another name
    (tmp_path / "same").mkdir()  # a folder that has the name of a profile is no data
    (tmp_path / "same" / "x").write_text("")
    assert key() == first
    (root / "birds" / "images").mkdir(parents=True)
    assert key() == first  # data that no parameter names
    with_birds = key(dataset="birds")
    (root / "birds" / "images" / "1.jpg").write_bytes(b"x")
    assert key(dataset="birds") != with_birds
    (root / "digits").mkdir()
    (root / "digits" / "x").write_text("")
    assert key() != first  # data named by a default
    shutil.rmtree(root / "digits")

    write_notebook(folder / "01_good.ipynb", GOOD, WRITES + "\nprint(1)")
    assert key() != first
    write_notebook(folder / "01_good.ipynb", GOOD + "\nresults_dir = None", WRITES)
    reading = key()
    results.write("03", rows(1.0), parameters={}, output_dir=tmp_path)
    with_results = key()
    assert with_results != reading
    (tmp_path / "claims.yml").write_text("claims: []")
    assert key() != with_results


def test_the_key_follows_the_code_of_every_room_of_the_package(folder, tmp_path, monkeypatch):
    package = tmp_path / "infocam_utils"
    shutil.copytree(store.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(store, "PACKAGE", package)
    (plan,) = runner.plan(["01"], folder=folder)

    def key():  # with a digest that nothing remembers
        monkeypatch.setattr(runner, "code_digest", store.code_digest.__wrapped__)
        return runner.run_key(plan, tmp_path / "data", tmp_path / "out", tmp_path / "results")

    keys = [key()]
    for file in ("cam.py", "experiments/mixtures.py", "data/__init__.py", "reproduce/results.py"):
        with (package / file).open("a") as stream:
            stream.write("\nchanged = 1\n")
        keys.append(key())
    assert len(set(keys)) == 5
    with (package / "cam.py").open("a") as stream:
        stream.write("\n# a comment\n")
    assert key() == keys[-1]


def test_data_used_carries_the_checksum_that_the_download_verified(tmp_path, monkeypatch):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "images.txt").write_text("1 a.jpg")
    (tmp_path / "birds.json").write_text('{"sha256": "abc"}')
    (tmp_path / "net.pt").write_bytes(b"123")
    monkeypatch.chdir(tmp_path)
    recipe = {"weights": str(tmp_path / "net.pt")}
    parameters = {"dataset": "digits,birds", "seeds": [0], "note": "birds.json", "recipe": recipe}
    used = runner.data_used(parameters, tmp_path)
    assert sorted(used) == [str(tmp_path / "net.pt"), "birds"]
    assert (used["birds"]["files"], used["birds"]["bytes"], used["birds"]["sha256"]) == (1, 7, "abc")


# What is shown


def test_plain_lines_are_few_and_a_terminal_has_one_line(monkeypatch):
    stream = io.StringIO()
    show = runner.Display(stream)
    for epoch in range(50):
        show.update("01  cell 3/9", f"epoch {epoch}/50")
    show.update("01  cell 4/9", "")
    assert stream.getvalue().splitlines() == ["01  cell 3/9  epoch 0/50", "01  cell 4/9"]
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    show = runner.Display(stream)
    show.update("01  cell 3/9", "epoch 1/50 and a text that is too long")
    show.line("01 done")
    assert stream.getvalue() == "\r\x1b[K01  cell 3/9  epoch 1/50 and \r\x1b[K01 done\n"


def test_progress_shows_the_last_whole_line(tmp_path):
    file = tmp_path / "p"
    assert runner._progress(file) == ""
    file.write_text(
        '{"text": "training", "done": 1, "total": 3}\n{"text": "training", "done": 2, "total": 3}\n'
    )
    assert runner._progress(file) == "training 2/3"
    file.write_text('{"text": "drawing", "done": null, "total": null}\n')
    assert runner._progress(file) == "drawing"


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
        # A suite that a script started in the background was given SIGINT as ignored, and passes that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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
