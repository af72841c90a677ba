"""The cells of a notebook on a folder that is named by its path."""

import json
from pathlib import Path

import pandas as pd
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
