"""The ledger: every verdict by its rule, clear errors, and drift between records, README and notebook 05."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output

from infocam_utils.reproduce import claims
from infocam_utils.reproduce.claims import Claim, Evidence, LedgerError, judge
from infocam_utils.reproduce.results import Record, RecordBook, exact

LEDGER = Path(__file__).parents[1] / "claims.yml"
IDS = [
    "pc_accuracy_cub", "pc_per_class_cub", "infocam_top1_loc_cub", "infocam_top1_error_cub",
    "infocam_top1_loc_tiny", "mi_softmax_balanced", "mi_softmax_imbalanced_bias", "mi_pc_imbalanced",
    "pc_per_class_gain", "infocam_gain_gt_known", "infocam_gain_top1", "pmi_single_images",
]  # fmt: skip


def book(*records, profile="paper", dataset="cub200", classes=200) -> RecordBook:
    made = RecordBook("03", profile, dataset, [0, 1, 2], {})
    for record in (*records, exact(f"{dataset}/classes", classes)):
        made.add(record)
    return made


def record(name, value, half=1.0, unit="%") -> Record:
    return Record(name, value, value - half, value + half, unit, 3, "t over seeds", (0, 1, 2), (value,) * 3)


def claim(**changes) -> Claim:
    fields = {
        "id": "x", "source": "s", "statement": "It works", "metric": "accuracy", "data": "cub200",
        "classes": 200, "paper": 80.0, "unit": "%", "tolerance": 0.5, "command": "infocam run 03",
        "evidence": (Evidence("a.json", "ours", "gain"),),
    }  # fmt: skip
    return Claim(**fields | changes)


def verdict(books, **changes) -> str:
    return judge([claim(**changes)], books)[0].verdict


@pytest.mark.parametrize(
    ("ours", "half", "gain", "expected"),
    [
        (80.4, 0.1, -3.0, "reproduced"),  # within the tolerance
        (82.0, 2.5, -3.0, "reproduced"),  # the paper's value is in our interval
        (82.0, 1.0, 3.0, "direction only"),
        (82.0, 1.0, 0.5, "not reproduced"),  # the difference's interval includes zero
        (82.0, 1.0, -3.0, "not reproduced"),
    ],
)
def test_verdicts_on_the_papers_own_data(ours, half, gain, expected):
    assert verdict({"a.json": book(record("ours", ours, half), record("gain", gain))}) == expected


@pytest.mark.parametrize("other", [{"profile": "quick"}, {"dataset": "digits"}, {"classes": 40}])
def test_other_data_reach_at_most_the_direction(other):
    records = record("ours", 80.0), record("gain", 3.0)
    assert verdict({"a.json": book(*records, **other)}) == "direction only"
    assert verdict({"a.json": book(records[0], record("gain", 0.0), **other)}) == "not reproduced"
    only_value = (Evidence("a.json", "ours"),)
    assert verdict({"a.json": book(*records, **other)}, evidence=only_value) == "not attempted"


def test_in_a_book_of_several_data_sets_a_record_says_which_is_its_own():
    several = book(record("digits/gain", 3.0), dataset="digits,cub200", profile="quick")
    (row,) = judge([claim(evidence=(Evidence("a.json", None, "digits/gain"),))], {"a.json": several})
    assert row.findings[0].dataset == "digits"


def test_a_single_run_without_interval_reproduces_by_tolerance_only():
    single = Record("ours", 81.0, float("-inf"), float("inf"), "%")
    lone = Record("gain", 5.0, float("-inf"), float("inf"), "%")
    assert verdict({"a.json": book(single, lone)}) == "not reproduced"
    assert verdict({"a.json": book(single, lone)}, tolerance=1.0) == "reproduced"


def test_a_claim_without_a_number_is_reproduced_by_its_direction():
    books = {"a.json": book(record("ours", 50.0), record("gain", 3.0))}
    assert verdict(books, paper=None) == "reproduced"
    assert verdict({"a.json": book(record("ours", 1.0), record("gain", 0.0))}, paper=None) == "not reproduced"


def test_a_difference_says_between_what():
    evidence = (Evidence("a.json", None, "birds/free/x_minus_cam/hits"),)
    (row,) = judge([claim(evidence=evidence)], {"a.json": book(record("birds/free/x_minus_cam/hits", 3.0))})
    assert "free/x − cam: 3.00 [2.00, 4.00] %" in claims.markdown([row])


def test_without_records_nothing_is_attempted():
    assert verdict({}) == "not attempted"


def test_the_strongest_evidence_decides_and_dissent_is_shown():
    evidence = tuple(Evidence(f"{n}.json", None, "gain") for n in "abc")
    books = {
        "a.json": book(record("gain", 3.0), dataset="digits", profile="quick"),
        "b.json": book(record("gain", -3.0), dataset="minibirds", profile="quick"),
    }
    (row,) = judge([claim(evidence=evidence)], books)
    assert (row.verdict, row.dissent) == ("direction only", "minibirds (quick): not reproduced")
    text = claims.markdown([row])
    assert "**direction only**<br>but minibirds (quick): not reproduced" in text
    assert "difference: 3.00 [2.00, 4.00] % (digits, quick, 3 seeds)<br>difference: -3.00" in text


@pytest.mark.parametrize(("error", "expected"), [(54.17, "cannot be right"), (44.17, "not attempted")])
def test_localization_cannot_exceed_what_is_classified(error, expected):
    loc = claim(id="loc", paper=55.83, evidence=())
    top1_error = claim(id="error", paper=error, contradicts="loc", evidence=())
    assert judge([loc, top1_error], {})[1].verdict == expected


def test_a_record_that_is_not_in_its_file_is_an_error_with_the_near_ones():
    with pytest.raises(LedgerError, match=r"row x: a.json has no record 'gain'; near: gains"):
        judge([claim()], {"a.json": book(record("ours", 1.0), record("gains", 1.0))})
    with pytest.raises(LedgerError, match="is in '%', its record 'ours' in 'nats'"):
        judge([claim()], {"a.json": book(record("ours", 1.0, unit="nats"), record("gain", 1.0))})


ROW = {"id": "a", "source": "s", "statement": "t", "metric": "m", "data": "d", "command": "c"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not YAML"),
        ("rows: []", "must have a list under 'claims'"),
        ({"claims": [3]}, "row 1: expected a mapping, was 3"),
        ({"claims": [ROW | {"vredict": "reproduced"}]}, "row a: unknown key 'vredict'"),
        ({"claims": [ROW | {"toleranc": 1}]}, "unknown key 'toleranc'; did you mean tolerance"),
        ({"claims": [{"id": "a"}]}, "row a: missing 5 required positional arguments"),
        ({"claims": [ROW, ROW]}, "row a: the identifier is taken"),
        ({"claims": [ROW | {"paper": "55.83 %"}]}, "paper must be a number, was '55.83 %'"),
        ({"claims": [ROW | {"evidence": "x"}]}, "evidence must be a list"),
        (
            {"claims": [ROW | {"evidence": [{"file": "x", "record": "y"}]}]},
            "row a: evidence: unknown key 'record'",
        ),
        ({"claims": [ROW | {"evidence": [{"file": "x"}]}]}, "must name a value, a direction"),
        ({"claims": [ROW | {"contradicts": "b"}]}, "contradicts an unknown row 'b'"),
    ],
)
def test_a_wrong_ledger_is_refused_by_row(tmp_path, content, message):
    path = tmp_path / "claims.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(LedgerError, match=message):
        claims.load_ledger(path)


@pytest.fixture
def repository(tmp_path):
    """A ledger with one measured row, its records, a README and a notebook 05 that agree."""
    evidence = [{"file": "quick/03.json", "direction": "gain"}]
    row = {"id": "x", "source": "s", "statement": "It works", "metric": "m", "data": "cub200", "paper": 80.0,
           "unit": "%", "command": "infocam run", "evidence": evidence}  # fmt: skip
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"claims": [row]}))
    book(record("gain", 3.0), profile="quick").write(tmp_path)
    (tmp_path / "results" / "quick").mkdir(parents=True)
    (tmp_path / "records" / "03.json").rename(tmp_path / "results" / "quick" / "03.json")
    (tmp_path / "README.md").write_text(f"# Title\n{claims.BEGIN}\nold\n{claims.END}\nmore\n")
    claims.write_readme(tmp_path)
    show(tmp_path, claims.markdown(claims.scorecard(tmp_path)))
    return tmp_path


def show(root, text):
    cell = new_code_cell("scorecard", outputs=[new_output("display_data", {"text/markdown": text})])
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=[cell]), root / "notebooks" / "05_scorecard.ipynb")


def test_check_is_silent_when_all_agree(repository):
    assert claims.check(repository) == []
    text = (repository / "README.md").read_text()
    assert text.startswith("# Title\n<!-- scorecard:begin -->\n| Claim |")
    assert text.endswith("<!-- scorecard:end -->\nmore\n")
    assert "**direction only**" in text
    claims.write_readme(repository)
    assert (repository / "README.md").read_text() == text


def test_check_finds_drift_in_records_readme_and_notebook(repository):
    book(record("gain", 0.5), profile="quick").write(repository)
    (repository / "records" / "03.json").replace(repository / "results" / "quick" / "03.json")
    readme, notebook = claims.check(repository)
    assert "README.md: the scorecard differs" in readme
    assert "05_scorecard.ipynb: shows another scorecard" in notebook
    claims.write_readme(repository)
    assert claims.check(repository) == [notebook]


def test_check_finds_a_typed_verdict(repository):
    readme = repository / "README.md"
    readme.write_text(readme.read_text().replace("direction only", "reproduced"))
    assert len(claims.check(repository)) == 1


def test_a_readme_without_markers_is_refused(repository):
    (repository / "README.md").write_text(f"{claims.END} {claims.BEGIN}")
    with pytest.raises(LedgerError, match="must have one"):
        claims.write_readme(repository)


def test_the_ledger_needs_a_clone(monkeypatch):
    monkeypatch.setattr(claims, "checkout", lambda: None)
    with pytest.raises(LedgerError, match="clone of the repository"):
        claims.scorecard()


def test_a_runs_records_take_the_place_of_the_committed_ones(repository, tmp_path):
    book(record("gain", -3.0), profile="quick").write(tmp_path / "run")
    (row,) = claims.scorecard(repository, tmp_path / "run", "quick")
    assert row.verdict == "not reproduced"
    (row,) = claims.scorecard(repository, tmp_path / "run", "another")
    assert row.verdict == "direction only"


def test_the_committed_ledger_has_every_claim_and_no_typed_verdict():
    ledger = claims.load_ledger(LEDGER)
    assert [c.id for c in ledger] == IDS
    verdicts = {row.claim.id: row.verdict for row in judge(ledger, {})}
    assert verdicts.pop("infocam_top1_error_cub") == "cannot be right"
    assert set(verdicts.values()) == {"not attempted"}
    assert not re.search("verdict *:", LEDGER.read_text())


def test_table_has_a_row_per_claim_and_no_markup():
    rows = judge(claims.load_ledger(LEDGER), {})
    table = claims.table(rows)
    assert list(table.index) == IDS
    assert table.loc["infocam_top1_loc_cub", "Paper"] == "55.83 %"
    assert not table.astype(str).apply(lambda column: column.str.contains(r"\*\*|<br>|`")).any(axis=None)
