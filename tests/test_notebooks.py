"""The notebooks as pages: what they tell, cite and show; and the cells of one on a folder of one's own."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from drawn_cub import write_cub_layout

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "03_pc_softmax_imbalanced_cub.ipynb"
SMALL = {"resize": 32, "crop": 32, "backbone": "small_resnet", "weights": "none"}
FAST = SMALL | {"frozen": False, "few": 2, "passes": 60}


def test_notebook_03_measures_a_folder_that_is_named_by_its_path(tmp_path, capsys):
    write_cub_layout(tmp_path / "birds", 6, 4, seed=4, num_classes=4)
    given = {"seeds": [0, 1], "dataset": str(tmp_path / "birds"), "data_dir": str(tmp_path / "data")}
    given |= {"output_dir": str(tmp_path / "out"), "recipe": FAST}
    names: dict = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names |= given
    assert list(names["tasks"]) == ["birds"]
    assert {"pc", "softmax", "post_hoc"} <= set(names["decided"]["method"])
    assert len(names["leads"])
    (file,) = (tmp_path / "out").rglob("03.csv")
    assert set(pd.read_csv(file)["dataset"]) == {"birds"}
    assert "birds" in capsys.readouterr().out


TAUGHT = sorted(NOTEBOOK.parent.glob("0[1-4]_*.ipynb"))
ALL = sorted(NOTEBOOK.parent.glob("*.ipynb"))
SLUG = re.compile(r"\b[a-z\d]+(?:_[a-z\d]+)+\b")


def cells_of(path: Path, kind: str = "") -> list[dict]:
    return [c for c in json.loads(path.read_text())["cells"] if kind in ("", c["cell_type"])]


def prose(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))


def test_all_notebooks_share_one_table_of_symbols():
    tables = {re.search(r"<details>.*?</details>", prose(path), re.S)[0] for path in TAUGHT}
    (table,) = tables
    for term in ("I(X;Y)", "H(Y \\mid X)", "PMI", "nat", "gauge", "IoU", "GT-known", "Top-1", "V2"):
        assert term in table, term


@pytest.mark.parametrize("path", TAUGHT, ids=lambda p: p.stem)
def test_a_notebook_asks_answers_and_names_its_sources(path):
    text = prose(path)
    for part in ("What to see", "> **The paper says**", "## Exercises", "## Answer", "## Common questions"):
        assert part in text, part
    body, _, sources = text.partition("## References")
    for author, year in re.findall(r"([A-Z][a-zè]+)(?: et al\.| and [A-Z][a-z]+)* (\d{4})\b", body):
        assert re.search(rf"{author}.* {year}\.", sources), f"{author} {year} is cited and not listed"
    assert all("](https://" in line for line in sources.strip().splitlines())


@pytest.mark.parametrize("path", TAUGHT, ids=lambda p: p.stem)
def test_every_exercise_has_its_solution_folded_and_executed(path):
    exercises = re.findall(r"^\*\*\d\.\*\*", prose(path), re.M)
    solutions = [c for c in cells_of(path, "code") if "solution" in c["metadata"].get("tags", [])]
    assert len(exercises) == len(solutions) >= 3
    for cell in solutions:
        assert cell["metadata"]["jupyter"]["source_hidden"]
        assert cell["execution_count"]
        assert cell["outputs"]


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_cells_are_short_and_figures_say_what_they_show(path):
    for cell in cells_of(path, "code"):
        assert len(cell["source"]) < 25, "".join(cell["source"][:3])
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                about = output["metadata"]["image/png"]
                assert about["alt"]
                assert about["width"] <= 960


@pytest.mark.parametrize("page", [*ALL, "README.md", "results/SCORECARD.md"], ids=lambda p: Path(p).stem)
def test_pages_for_people_have_words_and_no_names_of_the_code(page):
    if page in ALL:
        shown = [o for cell in cells_of(page, "code") for o in cell["outputs"]]
        parts = [
            o.get("text") or o["data"].get("text/html") or o["data"].get("text/markdown", "") for o in shown
        ]
        text = "\n".join("".join(part) for part in parts)
    else:
        text = (NOTEBOOK.parents[1] / page).read_text()
        text = re.sub(
            r"```.*?```|`[^`]*`|\[\w+\]\([^)]*\.py\)|\]\([^)]*\)|<!--.*?-->", "", text, flags=re.S
        )  # code and addresses
    text = re.sub(r"<style.*?</style>|<[^>]*>", " ", text, flags=re.S)
    assert not SLUG.findall(text)
