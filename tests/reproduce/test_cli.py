"""The command line: one line per error, the right exit status, and files that agree with what it says."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook

from infocam_utils.reproduce import cli
from infocam_utils.reproduce import runner as plans
from infocam_utils.reproduce.results import RecordBook

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def infocam(*arguments):
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments])


def write(folder, *values):
    book = RecordBook("03", "quick", "digits", [0, 1], {})
    book.measure("digits/accuracy", values, unit="%", tolerance=1.0)
    return book.write(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "06_nothing"], "unknown notebook '06_nothing'"),
        (["run", "--profile", "quik"], "unknown profile 'quik'; did you mean quick?"),
        (["run", "-p", "sedes=[0]"], "unknown parameter 'sedes'; did you mean seeds?"),
        (["run", "--set", "seeds=3"], "parameter 'seeds' must be list like its default [0, 1, 2], was 3"),
    ],
)
def test_a_request_that_cannot_be_is_one_line_and_status_2(tmp_path, arguments, message):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "quick.yaml").write_text("")
    cell = new_code_cell("seeds = [0, 1, 2]", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "01.ipynb")
    result = infocam(*arguments, "--notebooks", tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {message}")
    assert result.output.count("\n") == 1


def test_a_pair_without_equals_sign_is_refused():
    result = infocam("run", "-p", "seeds")
    assert result.exit_code == 2
    assert "expected key=value, was 'seeds'" in result.output


def test_update_puts_records_and_the_clean_notebook_back(tmp_path):
    folder = tmp_path / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles" / "quick.yaml").write_text("common: {seeds: [0, 1]}")
    cells = [
        new_code_cell("profile = 'quick'\nseeds = [0, 1]", metadata={"tags": ["parameters"]}),
        new_code_cell("from infocam_utils.records import RecordBook\n"
                      "book = RecordBook('01', profile, 'digits', seeds, {})\n"
                      "book.measure('digits/n', [1.0] * len(seeds))\nbook.write()\nprint(len(seeds))"),
    ]  # fmt: skip
    nbformat.write(new_notebook(cells=cells), folder / "01.ipynb")
    result = infocam("run", "--notebooks", folder, "--output", tmp_path / "out", "--update")
    assert result.exit_code == 0, result.output
    assert "1 of 1 notebooks done" in result.output
    committed = nbformat.read(folder / "01.ipynb", as_version=4)
    assert [c.execution_count for c in committed.cells] == [1, 2]
    assert committed.cells[1].outputs[-1].text == "2\n"
    assert json.loads((tmp_path / "results" / "quick" / "01.json").read_text())["seeds"] == [0, 1]

    before = (folder / "01.ipynb").read_text()
    more = infocam("run", "--notebooks", folder, "--output", tmp_path / "out", "--update", "-p", "seeds=[2]")
    assert "01: the notebook stays, since it ran with other seeds" in more.output
    assert (folder / "01.ipynb").read_text() == before


def test_a_failing_notebook_gives_status_1(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "quick.yaml").write_text("")
    nbformat.write(
        new_notebook(cells=[new_code_cell("raise ValueError('too small')")]), tmp_path / "01.ipynb"
    )
    result = infocam("run", "--notebooks", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "01 failed in cell [1]: ValueError: too small" in result.output
    assert "0 of 1 notebooks done" in result.output


def test_compare_is_by_number_within_tolerance(tmp_path):
    write(tmp_path / "a", 90.0, 92.0)
    write(tmp_path / "b", 90.5, 92.5)
    write(tmp_path / "c", 90.0, 95.0)
    same = infocam("compare", tmp_path / "a" / "records", tmp_path / "b" / "records")
    assert (same.exit_code, same.output) == (0, "1 files of records agree within their tolerances\n")
    other = infocam("compare", tmp_path / "a" / "records" / "03.json", tmp_path / "c" / "records" / "03.json")
    assert other.exit_code == 1
    assert "03: digits/accuracy: committed 91, now 92.5" in other.output
    shutil.rmtree(tmp_path / "b" / "records")
    (tmp_path / "b" / "records").mkdir()
    missing = infocam("compare", tmp_path / "a" / "records", tmp_path / "b" / "records")
    assert missing.exit_code == 1
    assert "No such file" in missing.output
    assert infocam("compare", tmp_path / "b", tmp_path / "a").exit_code == 1


def test_claims_prints_checks_and_writes(tmp_path):
    shutil.copy(NOTEBOOKS.parent / "claims.yml", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("<!-- scorecard:begin -->\n<!-- scorecard:end -->\n")
    printed = infocam("claims", "--root", tmp_path)
    assert printed.exit_code == 0
    assert "infocam_top1_error_cub: cannot be right\n  claim: The same network" in printed.output
    stale = infocam("claims", "--root", tmp_path, "--check")
    assert (stale.exit_code, stale.output.count("\n")) == (1, 1)
    assert "README.md: the scorecard differs" in stale.output
    written = infocam("claims", "--root", tmp_path, "--write", "--check")
    assert written.exit_code == 0, written.output
    assert "README, notebook 05 and ledger agree" in written.output
    (tmp_path / "claims.yml").write_text("claims: [{id: x}]")
    wrong = infocam("claims", "--root", tmp_path)
    assert (wrong.exit_code, wrong.output.count("\n")) == (1, 1)
    assert "row x: missing" in wrong.output


def test_an_installed_package_says_that_the_ledger_needs_a_clone(monkeypatch):
    monkeypatch.setattr(cli, "checkout", lambda: None)
    result = infocam("claims")
    assert result.exit_code == 1
    assert "needs a clone of the repository" in result.output


def test_data_list_shows_every_set_with_licence_and_state(tmp_path):
    result = infocam("data", "list", "--data-dir", tmp_path)
    assert result.exit_code == 0
    for part in ("digits: always there", "cub200: missing", "1.15 GB", str(tmp_path / "tiny-imagenet")):
        assert part in result.output


def test_data_get_refuses_in_one_line(tmp_path):
    result = infocam("data", "get", "cub", "--data-dir", tmp_path)
    assert result.exit_code == 1
    assert "Error: unknown data set 'cub'" in result.output
    missing = infocam("data", "get", "cub200", "--url", f"file://{tmp_path}/none.tgz", "--data-dir", tmp_path)
    assert missing.exit_code == 1
    assert "none.tgz" in missing.output.splitlines()[-1]


@pytest.mark.skipif(len(list(NOTEBOOKS.glob("*.ipynb"))) < 5, reason="the five notebooks are not all here")
@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_the_committed_profiles_fit_the_committed_notebooks(profile):
    chosen = plans.plan((), profile)
    assert [plan.name[:2] for plan in chosen] == ["01", "02", "03", "04", "05"]
    assert all(len(plan.parameters.get("seeds", [0, 1, 2])) >= 3 for plan in chosen if profile != "smoke")
    if profile == "quick":  # so that the committed outputs belong to the parameters that a reader sees
        assert all(value == plan.defaults[name] for plan in chosen for name, value in plan.parameters.items())


def test_help_names_every_command():
    result = infocam("--help")
    assert {"run", "claims", "compare", "data"} <= set(re.findall(r"^  (\w+)", result.output, re.M))
