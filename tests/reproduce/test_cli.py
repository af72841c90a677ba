"""The command line: one line per error, the right exit status, and files that agree with what it says."""

import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook

from infocam_utils.reproduce import claims, cli, results, runner

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def infocam(*arguments):
    return CliRunner().invoke(cli.cli, [str(a) for a in arguments])


def write(folder, *values, number="03", **parameters):
    rows = pd.DataFrame(
        {"metric": "accuracy", "unit": "%", "seed": range(len(values)), "value": list(values), "n": 400}
    )
    parameters = {"profile": "quick"} | parameters
    return results.write(f"{number}_x", rows, parameters=parameters, output_dir=folder)


def write_notebook(path, *sources):
    cells = [new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), path)


@pytest.fixture
def folder(tmp_path):
    """One notebook with a recipe, which writes its results."""
    where = tmp_path / "repo" / "notebooks"
    (where / "profiles").mkdir(parents=True)
    (where / "profiles" / "quick.yaml").write_text("common: {seeds: [0, 1]}")
    write_notebook(
        where / "03_x.ipynb",
        "profile = 'quick'\nseeds = [0, 1]\nrecipe = {'passes': 100}",
        "from infocam_utils.reproduce import results\nimport pandas as pd\n"
        "given = {'profile': profile, 'seeds': seeds, 'recipe': recipe}\n"
        "rows = pd.DataFrame({'metric': 'n', 'unit': '', 'seed': seeds, 'value': float(recipe['passes'])})\n"
        "results.write('03_x', rows, parameters=given)\nprint(len(seeds))",
    )
    return where


@pytest.fixture
def planned(monkeypatch):
    """What the command plans, in place of running it."""
    plans = []

    def run(chosen, output, **options):
        plans.extend((plan, output, options) for plan in chosen)
        return {"notebooks": {plan.name: {"status": "done"} for plan in chosen}}

    monkeypatch.setattr(runner, "run", run)
    return plans


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["06_nothing"], "unknown notebook '06_nothing'"),
        (["--profile", "quik"], "unknown profile 'quik'; did you mean quick?"),
        (["-p", "sedes=[0]"], "unknown parameter 'sedes'; did you mean seeds"),
        (["-p", "strid=16"], "unknown parameter 'strid'; did you mean stride"),
        (["-p", "devices=many"], "parameter 'devices' must be int or None, was 'many'"),
        (["--set", "seeds=3"], "parameter 'seeds' must be list[int] like its default [0, 1], was 3"),
        (["--set", "seeds=[1, 1]"], "seeds must be distinct, and at least one, were [1, 1]"),
        (["--from", "none.json"], "none.json and its .csv are no results"),
        (["03", "--from", "none.json"], "--from names the notebook and the profile itself"),
    ],
)
def test_a_request_that_cannot_be_is_one_line_and_status_2(folder, arguments, message):
    result = infocam("run", *arguments, "--notebooks", folder)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {message}")
    assert result.output.count("\n") == 1


def test_a_pair_without_equals_sign_is_refused():
    result = infocam("run", "-p", "seeds")
    assert result.exit_code == 2
    assert "expected key=value, was 'seeds'" in result.output


def test_every_field_of_the_recipe_is_a_parameter(folder, planned):
    given = {"devices": 2, "precision": "bf16-mixed", "stride": 16, "lr": 0.5, "frozen": False}
    pairs = [part for name, value in given.items() for part in ("-p", f"{name}={value}")]
    result = infocam("run", "--notebooks", folder, *pairs)
    assert result.exit_code == 0, result.output
    ((plan, _, _),) = planned
    assert plan.parameters["recipe"] == {"passes": 100} | given


@pytest.mark.parametrize("place", ["results/mine", "runs/mine/results"])
def test_a_run_is_repeated_from_its_results_alone(folder, planned, tmp_path, place):
    given = {"seeds": [4, 5], "recipe": {"passes": 7, "devices": 2, "stride": None}}
    path = write(tmp_path / "made", 1.0, 2.0, **given)
    shutil.copytree(path.parent, tmp_path / place)
    (folder / "profiles" / "quick.yaml").unlink()
    result = infocam("run", "--from", tmp_path / place / "03.json", "--notebooks", folder)
    assert result.exit_code == 0, result.output
    ((plan, output, options),) = planned
    assert plan.in_force == results.read(path).parameters == {"profile": "quick"} | given
    assert (options["name"], output.name) == ("mine", "mine")


def test_update_puts_results_and_the_clean_notebook_back(folder, tmp_path):
    result = infocam("run", "--notebooks", folder, "--output", tmp_path / "out", "--update")
    assert result.exit_code == 0, result.output
    assert "1 of 1 notebooks done" in result.output
    committed = nbformat.read(folder / "03_x.ipynb", as_version=4)
    assert [c.execution_count for c in committed.cells] == [1, 2]
    assert committed.cells[1].outputs[-1].text == "2\n"
    kept = folder.parent / "results" / "quick"
    assert results.read(kept / "03.json").parameters["seeds"] == [0, 1]

    before = (folder / "03_x.ipynb").read_text()
    more = infocam("run", "--notebooks", folder, "--output", tmp_path / "out", "--update", "-p", "passes=5")
    assert "03_x: the notebook stays, since it ran with other recipe" in more.output
    assert (folder / "03_x.ipynb").read_text() == before
    assert results.read(kept / "03.json").rows["value"].tolist() == [5.0, 5.0]
    # The index says whether a run agrees with what is committed under its name.
    assert "1 of 1 numbers" in (tmp_path / "out" / "index.html").read_text()
    infocam("run", "--notebooks", folder, "--output", tmp_path / "out")
    assert "committed 5, now 100" in (tmp_path / "out" / "index.html").read_text()


def test_a_failing_notebook_gives_status_1(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "quick.yaml").write_text("")
    write_notebook(tmp_path / "01.ipynb", "", "raise ValueError('too small')")
    result = infocam("run", "--notebooks", tmp_path, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "01 failed in cell [1]: ValueError: too small" in result.output
    assert "0 of 1 notebooks done" in result.output


def test_an_output_that_is_no_place_for_a_run_is_one_line_and_status_2(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    dot = infocam("run", "--notebooks", folder, "--output", ".")
    assert (dot.exit_code, dot.output.count("\n")) == (2, 1)
    assert "would overwrite" in dot.output
    assert [p.name for p in folder.parent.iterdir()] == ["notebooks"]


def test_an_output_that_cannot_be_written_is_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    below = infocam("run", "--notebooks", folder, "--output", tmp_path / "file" / "out")
    on = infocam("run", "--notebooks", folder, "--output", tmp_path / "file")

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(runner, "atomic_write", full)
    out_of_room = infocam("run", "--notebooks", folder, "--output", tmp_path / "out")
    for result in (below, on, out_of_room):
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert result.output.startswith(f"Error: the run in {tmp_path}")
    assert "No space left on device" in out_of_room.output


def test_compare_is_by_number_within_tolerance(tmp_path):
    one, near = write(tmp_path / "a", 90, 92), write(tmp_path / "b", 91, 92)
    far = write(tmp_path / "c", 50, 92)
    same = infocam("compare", one, near)
    assert (same.exit_code, same.output) == (0, "1 files of results agree within their tolerances\n")
    assert infocam("compare", one.parent, near.parent).exit_code == 0
    other = infocam("compare", one, far)
    assert other.exit_code == 1
    assert "committed 91, now 71" in other.output
    assert other.output.endswith("Error: 1 differences\n")
    (tmp_path / "b" / "manifest.json").write_text("{}")
    assert infocam("compare", one.parent, tmp_path / "b").exit_code == 0  # the folder of a run
    assert infocam("compare", one.parent, near).exit_code == 2


def test_compare_takes_notebook_and_parameters_into_account(tmp_path):
    one = write(tmp_path / "a", 90.0, recipe={"stride": 16})
    for name, other in {
        "recipe": write(tmp_path / "b", 90.0, recipe={"stride": 32}),
        "notebook": write(tmp_path / "c", 90.0, recipe={"stride": 16}, number="04"),
    }.items():
        result = infocam("compare", one, other)
        assert result.exit_code == 1
        assert name in result.output


def test_compare_names_files_that_are_on_one_side_only(tmp_path):
    one = write(tmp_path / "a", 90.0)
    write(tmp_path / "a", 90.0, number="04")
    write(tmp_path / "b", 90.0)
    two = write(tmp_path / "b", 90.0, number="05")
    result = infocam("compare", one.parent, two.parent)
    assert result.exit_code == 1
    assert f"04: not in {two.parent}\n05: not in {one.parent}\n" in result.output
    (tmp_path / "empty").mkdir()
    for folder, said in (
        (one.parent, f"03: not in {tmp_path / 'empty'}"),
        (tmp_path / "empty", "no results in"),
    ):
        result = infocam("compare", folder, tmp_path / "empty")
        assert result.exit_code == 1
        assert said in result.output


def test_results_that_are_none_agree_with_nothing_and_are_one_line(tmp_path):
    one, two = write(tmp_path / "a", 90.0), write(tmp_path / "b", 90.0)
    two.with_suffix(".csv").write_text(two.with_suffix(".csv").read_text().replace("90.0", "nan"))
    for content in (None, "{", "null", "[" * 100_000, '{"rows": 3}'):
        if content is not None:
            two.write_text(content)
        for pair in ((one, two), (two, one), (two, two)):
            result = infocam("compare", *pair)
            assert (result.exit_code, result.output.count("\n")) == (1, 1)
            assert "run the notebook again" in result.output


def test_claims_prints_checks_and_writes(tmp_path):
    shutil.copy(NOTEBOOKS.parent / "claims.yml", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(
        "".join(f"<!-- {block}:{end} -->\n" for block in claims.BLOCKS for end in ("begin", "end"))
    )
    printed = infocam("claims", "--root", tmp_path)
    assert printed.exit_code == 0, printed.output
    assert re.search(r"^infocam_top1_error_cub: cannot be right\n  the paper says: ", printed.output, re.M)
    stale = infocam("claims", "--root", tmp_path, "--check")
    assert (stale.exit_code, stale.output.count("\n")) == (1, 1)
    assert "README.md" in stale.output
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
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "unknown data set 'cub'; there are digits, " in result.output
    missing = infocam("data", "get", "cub200", "--url", f"file://{tmp_path}/none.tgz", "--data-dir", tmp_path)
    assert missing.exit_code == 1
    assert "none.tgz" in missing.output.splitlines()[-1]


@pytest.mark.skipif(len(list(NOTEBOOKS.glob("*.ipynb"))) < 5, reason="the five notebooks are not all here")
@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_the_committed_profiles_fit_the_committed_notebooks(profile):
    chosen = runner.plan((), profile, recipe_fields=cli.recipe_fields())
    assert [plan.name[:2] for plan in chosen] == ["01", "02", "03", "04", "05"]
    assert all(len(plan.parameters.get("seeds", [0, 1, 2])) >= 3 for plan in chosen if profile != "smoke")
    if profile == "quick":  # so that the committed outputs belong to the parameters that a reader sees
        assert all(value == plan.defaults[name] for plan in chosen for name, value in plan.parameters.items())


def test_help_names_every_command():
    result = infocam("--help")
    assert {"run", "claims", "compare", "data"} <= set(re.findall(r"^  (\w+)", result.output, re.M))
