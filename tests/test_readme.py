"""What the README promises is there: its snippet runs, its commands exist, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from families import table
from PIL import Image

from infocam_utils.reproduce import results, runner
from infocam_utils.reproduce.cli import cli, recipe_fields

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_snippets_run_as_they_stand(capsys, tmp_path, monkeypatch):
    Image.new("RGB", (300, 200), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    loss, question = fenced("python")
    for snippet in (loss, question):
        assert len(snippet.splitlines()) <= 10
    scope: dict = {}
    exec(loss, scope)  # the README's own code, read from this repository
    assert scope["decided"].shape == (6,)
    assert "Estimate(value=" in capsys.readouterr().out
    exec(question, scope)
    assert scope["found"].way == "norm"
    assert "robin against sparrow: log odds" in capsys.readouterr().out
    assert (tmp_path / "why.png").stat().st_size > 10_000


def test_the_table_of_networks_is_the_one_that_is_tested():
    shown = README.partition("<!-- families:begin -->\n")[2].partition("\n<!-- families:end -->")[0]
    assert shown == table(), "python tests/families.py prints it"


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [t for t in targets if "://" not in t]
    assert len(local) >= 8
    hosted = "../../actions/workflows/"  # the badge: on GitHub, above the files
    missing = [t for t in local if not t.startswith(hosted) and not (ROOT / t).exists()]
    assert not missing
    shown = {t.removeprefix(hosted).removesuffix("/badge.svg") for t in local if t.startswith(hosted)}
    assert shown == {"test.yml"} <= {p.name for p in (ROOT / ".github" / "workflows").iterdir()}


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (?:[A-Z_]+=\S+ )?([a-z]+)", README))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


def commands() -> list[list[str]]:
    lines = [line.split("#")[0].strip() for block in fenced("") for line in block.splitlines()]
    lines = [re.sub(r"^torchrun .* -m infocam_utils", "infocam", line) for line in lines]
    lines += re.findall(r"`(infocam [^`]+)`", README + (ROOT / "results" / "README.md").read_text())
    spelled_out = [
        line for line in dict.fromkeys(lines) if line.startswith("infocam") and "/NN.json" not in line
    ]
    return [shlex.split(line)[1:] for line in spelled_out]


def planned(*request, **options):
    return runner.plan(*request, recipe_fields=recipe_fields(), **options)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_ones_that_the_program_knows(words):
    """Runs are planned, which refuses unknown notebooks, profiles and parameters, but not executed."""
    if words[0] == "run":
        command = cli.commands["run"]
        given = command.make_context("run", words[1:], resilient_parsing=False).params
        assert planned(given["notebooks"], given["profile"] or "quick", given["overrides"])
    else:
        group, arguments = words[0], words[1:]
        depth = 2 if group == "data" else 1
        result = CliRunner().invoke(cli, [*words[:depth], "--help"])
        assert result.exit_code == 0, result.output
        for option in (w for w in arguments if w.startswith("--")):
            assert option in result.output


def test_every_folder_of_results_has_its_command():
    text = (ROOT / "results" / "README.md").read_text()
    folders = {p.name for p in (ROOT / "results").iterdir() if p.is_dir()}
    assert set(re.findall(r"^\| `([\w-]+)` \|", text, re.M)) >= folders
    for folder in folders - {"quick", "paper"}:
        assert f"--name {folder} " in text


def test_every_run_can_be_repeated_from_its_results_alone():
    for path in sorted((ROOT / "results").glob("*/[0-9][0-9].json")):
        record = results.read(path)
        (made,) = planned(record=record)
        assert made.path.stem == record.notebook
        assert {k: made.in_force[k] for k in record.parameters} == record.parameters, path


def test_every_profile_plans_all_notebooks():
    for name in ("smoke", "quick", "paper"):
        assert len(planned(profile=name)) == 5


def test_quick_profile_is_what_the_notebooks_have_as_defaults():
    """So that the committed notebooks, run by hand, are what `make reproduce` gives."""
    for made in planned(profile="quick"):
        assert {k: v for k, v in made.parameters.items() if v != made.defaults[k]} == {}, made.name


def test_citation_names_package_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["type"] == "software"
    assert "1911.10688" in citation["preferred-citation"]["url"]
    assert [a["family-names"] for a in citation["preferred-citation"]["authors"]] == ["Qin", "Kim", "Gedeon"]
