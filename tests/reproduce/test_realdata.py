"""The README's tables of real runs: every number from a record, disagreement found."""

import pytest

from infocam_utils.reproduce import realdata
from infocam_utils.reproduce.results import Record, RecordBook, from_seeds


@pytest.fixture
def root(tmp_path):
    book = RecordBook(
        "03_pc_softmax_imbalanced_cub", "paper", "birds", [0, 1], {"few": 3, "head_optimizer": "lbfgs"}
    )
    for name, values in {"softmax": (70.0, 72.0), "pc": (80.0, 84.0)}.items():
        book.add(from_seeds(f"birds/{name}/per_class_accuracy_all", values, [0, 1], "%"))
    book.write(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "records").rename(tmp_path / "results" / "birds-3")
    book = RecordBook("04_infocam_localization", "paper", "birds", [0], {"stride": 16})
    book.add(Record("birds/free/cam/gt_known", 55.5, 50.0, 60.0, "%", 9, "bootstrap over images"))
    book.write(tmp_path)
    (tmp_path / "records").rename(tmp_path / "results" / "birds-loc")
    (tmp_path / "README.md").write_text(f"top\n{realdata.BEGIN}\nold\n{realdata.END}\nbottom\n")
    return tmp_path


def test_tables_show_the_records_and_nothing_else(root):
    text = realdata.tables(root)
    assert "| [birds](results/birds-3/03_pc_softmax_imbalanced_cub.json) | 3 : 30 | 2 |" in text
    assert "71.0 [58.3, 83.7]" in text
    assert "82.0 [56.6, 107.4]" in text
    assert "| 16 | free, 1 | 55.5 [50.0, 60.0] | – |" in text


def test_write_then_check_agree_and_an_edit_is_found(root):
    assert realdata.check(root)
    realdata.write(root)
    assert realdata.check(root) == []
    readme = root / "README.md"
    text = readme.read_text()
    assert text.startswith("top\n")
    assert text.endswith("\nbottom\n")
    readme.write_text(text.replace("55.5", "65.5"))
    assert realdata.check(root)


def test_a_readme_without_the_block_is_left_alone(root):
    (root / "README.md").write_text("plain")
    assert realdata.check(root) == []
    realdata.write(root)
    assert (root / "README.md").read_text() == "plain"


def test_no_real_run_is_an_error(tmp_path):
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match="no run on real data"):
        realdata.tables(tmp_path)
