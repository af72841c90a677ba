"""The ledger: every verdict by its rule, clear errors, and drift between results, README and notebook 05."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook, new_output

from infocam_utils.reproduce import answers, claims, results
from infocam_utils.reproduce.claims import Claim, LedgerError, judge

ROOT = Path(__file__).parents[2]
PUBLISHED = {"pc_accuracy_cub": 89.73, "pc_per_class_cub": 87.69, "infocam_top1_loc_cub": 55.83,
             "infocam_top1_error_cub": 54.17, "infocam_top1_loc_tiny": 43.34}  # fmt: skip
BASE = {
    "notebook": "03",
    "dataset": "cub200",
    "metric": "accuracy",
    "unit": "%",
    "n": 1000,
    "profile": "paper",
}


def settings(*leads, run="a", dataset="cub200", classes=200, head=None, value=None) -> pd.DataFrame:
    """One setting for each difference (low, high), and a value of ours with an interval of ±1."""
    made = [
        {**BASE, "run": run, "dataset": dataset, "metric": "classes", "unit": "", "value": float(classes)}
    ]
    for number, (low, high) in enumerate(leads):
        about = {
            **BASE,
            "run": f"{run}{number}" if number else run,
            "dataset": dataset,
            "head": head,
            "method": "pc",
        }
        about |= {"than_method": "softmax", "unit": "points", "interval": "bootstrap over images"}
        made.append(about | {"value": (low + high) / 2, "low": low, "high": high})
    if value is not None:
        made.append({**BASE, "run": run, "dataset": dataset, "head": head, "method": "pc", "value": value}
                    | {"low": value - 1, "high": value + 1, "interval": "bootstrap over images"})  # fmt: skip
    return pd.DataFrame(made)


def claim(**changes) -> Claim:
    rows = {"notebook": "03", "method": "pc", "metric": "accuracy"}
    fields = {"id": "x", "source": "s", "statement": "It works", "metric": "accuracy", "data": "cub200"}
    fields |= {"classes": 200, "unit": "%", "tolerance": 0.5, "command": "infocam run 03"}
    return Claim(**fields | {"value": rows, "direction": rows | {"than_method": "softmax"}} | changes)


def verdict(rows, **changes) -> str:
    return judge([claim(**changes)], rows)[0].verdict


UP, OPEN, DOWN = (1.0, 3.0), (-1.0, 3.0), (-3.0, -1.0)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [(80.4, "reproduced"), (80.9, "reproduced"), (81.6, "higher"), (78.4, "not reproduced")],
)
def test_a_number_on_the_papers_own_data(ours, expected):
    assert verdict(settings(UP, value=ours), paper=80.0) == expected


def test_a_number_on_other_or_smaller_data_is_never_reproduced():
    for rows in (settings(UP, value=80.0, dataset="cub-40"), settings(UP, value=80.0, classes=40)):
        assert verdict(rows, paper=80.0) == "direction only"
    assert verdict(settings(value=80.0, dataset="cub-40"), paper=80.0, direction={}) == "not attempted"


@pytest.mark.parametrize(
    ("leads", "expected"),
    [
        ([UP], "direction only"),
        ([UP, UP, OPEN], "direction only"),
        ([UP, OPEN], "mixed"),  # as many undecided as above
        ([UP, UP, UP, DOWN], "mixed"),
        ([UP] + [OPEN] * 9, "mixed"),  # not the verdict of the best finding
        ([OPEN, OPEN], "not shown"),
        ([OPEN, DOWN], "contradicted"),
        ([DOWN], "contradicted"),
        ([], "not attempted"),
    ],
)
def test_a_direction_counts_all_settings(leads, expected):
    assert verdict(settings(*leads, dataset="birds")) == expected


def test_a_direction_on_the_papers_own_data():
    assert verdict(settings(UP)) == "reproduced"
    assert verdict(settings(OPEN)) == "not shown"
    assert verdict(settings(DOWN)) == "contradicted"


def test_several_runs_on_own_data_must_all_agree():
    rows = pd.concat([settings(value=80.0, run="a"), settings(value=90.0, run="b")])
    assert verdict(rows, paper=80.0) == "mixed"
    rows = pd.concat([settings(value=70.0, run="a"), settings(value=90.0, run="b")])
    assert verdict(rows, paper=80.0) == "mixed", "one lower, one higher"


def test_another_archive_is_not_the_papers_data_whatever_its_name():
    rows = pd.concat([settings(UP, value=80.0).assign(archive="another")])
    assert verdict(rows, paper=80.0) == "direction only"
    assert verdict(rows.assign(archive=None), paper=80.0) == "reproduced"


def test_the_smoke_profile_decides_nothing():
    assert verdict(settings(UP).assign(profile="smoke")) == "not attempted"


def test_counts_are_told_for_each_head():
    rows = pd.concat(
        [settings(UP, UP, head="free", dataset="b"), settings(OPEN, DOWN, head="decayed", dataset="c")]
    )
    (row,) = judge([claim()], rows)
    assert row.count("free") == {"above": 2, "undecided": 0, "below": 0}
    assert row.count("decayed") == {"above": 0, "undecided": 1, "below": 1}
    assert claims.ours(row) == "difference −2.0 to 2.0 points, above 0 in 2 of 4 settings, below in 1"
    assert "By head, above/undecided/below: decayed 0/1/1, free 2/0/0." in claims.details([row], rows[:0])


def test_differences_that_no_row_has_are_paired_by_seed():
    seeds = [{**BASE, "run": "a", "dataset": "birds", "method": m, "seed": s, "value": 80.0 + s + lead}
             for m, lead in (("pc", 2.0), ("softmax", 0.0)) for s in (0, 1, 2)]  # fmt: skip
    (row,) = judge([claim()], pd.DataFrame(seeds))
    (finding,) = row.findings
    assert finding.direction["value"] == pytest.approx(2.0)
    assert finding.side == "above"


def test_a_number_that_contradicts_another_cannot_be_right():
    ledger = [claim(id="loc", paper=55.83), claim(id="error", paper=54.17, contradicts="loc")]
    assert [row.verdict for row in judge(ledger, settings())] == ["not attempted", "cannot be right"]
    ledger[1] = claim(id="error", paper=44.17, contradicts="loc")
    assert judge(ledger, settings())[1].verdict == "not attempted"


def test_selection_by_an_unknown_column_is_refused():
    with pytest.raises(LedgerError, match=r"row x: direction selects by an unknown column 'methode'.*method"):
        verdict(settings(UP), direction={"methode": "pc"})


def test_units_must_fit():
    with pytest.raises(LedgerError, match="is in 'nats'"):
        verdict(settings(UP), unit="nats")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"papr": 1}, r"did you mean .*paper"),
        ({"paper": "high"}, "paper must be a number"),
        ({"value": [1]}, "must be a choice of columns"),
        ({"contradicts": "nothing"}, "contradicts an unknown row"),
    ],
)
def test_a_ledger_that_cannot_be_is_refused(tmp_path, change, message):
    row = {k: getattr(claim(), k) for k in ("id", "source", "statement", "metric", "data", "command")}
    (tmp_path / "claims.yml").write_text(yaml.safe_dump({"claims": [row | change]}))
    with pytest.raises(LedgerError, match=message):
        claims.load_ledger(tmp_path / "claims.yml")


def test_a_missing_ledger_names_the_remedy(tmp_path):
    with pytest.raises(LedgerError, match="a clone of the repository"):
        claims.load_ledger(tmp_path / "claims.yml")


# The repository's own ledger and pages


def test_the_published_numbers_keep_a_row():
    ledger = {c.id: c for c in claims.load_ledger(ROOT / "claims.yml")}
    assert {k: ledger[k].paper for k in PUBLISHED} == PUBLISHED


def test_every_difference_between_maps_is_at_equal_region_or_about_the_region_itself():
    rows = results.read_all(ROOT / "results")
    for row in judge(claims.load_ledger(ROOT / "claims.yml"), rows):
        for finding in row.findings:
            lead = finding.direction or {}
            if lead.get("than_method") in ("cam", "infocam", "feature_norm") and row.claim.id not in (
                "region_sum_gain_cam",
                "second_layer_over_norm",
            ):
                assert lead["region"] == lead["than_region"], row.claim.id
                assert results.known(lead).get("padding") == results.known(lead).get("than_padding"), (
                    row.claim.id
                )


def test_every_claim_of_the_ledger_finds_rows():
    found = {row.claim.id: row for row in claims.scorecard(ROOT)}
    for name, row in found.items():
        assert row.findings or row.verdict == "cannot be right", name
    assert found["infocam_top1_error_cub"].verdict == "cannot be right"
    assert found["mi_pc_imbalanced"].verdict == "reproduced"


def page(tmp_path):
    """A repository of its own with the pages rendered."""
    for name in ("claims.yml", "README.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    rows = settings(UP).drop(columns=["run", "notebook", "profile"])
    results.write("03_task", rows, parameters={"profile": "paper"}, output_dir=tmp_path)
    (tmp_path / "notebooks").mkdir()
    claims.write(tmp_path)
    text = claims.markdown(claims.scorecard(tmp_path))
    output = new_output("display_data", {"text/markdown": text})
    notebook = new_notebook(cells=[new_code_cell("1", outputs=[output])])
    nbformat.write(notebook, tmp_path / "notebooks" / "05_scorecard.ipynb")
    return tmp_path


def test_pages_that_agree_and_pages_that_drifted(tmp_path):
    root = page(tmp_path)
    assert claims.check(root) == []
    for path, old in ((root / "README.md", "PC-softmax"), (root / "results" / "SCORECARD.md", "accuracy")):
        kept = path.read_text(encoding="utf-8")
        begin = kept.index("<!-- scorecard:begin -->") if "scorecard:begin" in kept else 0
        path.write_text(kept[:begin] + kept[begin:].replace(old, "X", 1), encoding="utf-8")
        assert len(claims.check(root)) == 1, path
        path.write_text(kept, encoding="utf-8")
    (root / "notebooks" / "05_scorecard.ipynb").write_text(
        nbformat.writes(new_notebook(cells=[new_code_cell("1")]))
    )
    assert "shows another scorecard" in claims.check(root)[0]


def test_the_run_takes_the_place_of_the_committed_one(tmp_path):
    root = page(tmp_path)
    fresh = settings(DOWN).drop(columns=["run", "notebook", "profile"])
    results.write("03_task", fresh, parameters={"profile": "paper"}, output_dir=tmp_path / "out")
    rows = claims.rows_with(root, tmp_path / "out", "results")
    assert results.select(rows, than_method="softmax")["value"].tolist() == [-2.0]
    both = claims.rows_with(root, tmp_path / "out", "another")
    assert sorted(results.select(both, than_method="softmax")["value"]) == [-2.0, 2.0]


def trusted(setting, metric, gap, low_high, frozen=True) -> list[dict]:
    """Rows of three seeds by both methods whose paired difference has about the given mean."""
    about = {"notebook": "03", "run": "r", "dataset": "d", "frozen": frozen, "test": "all", "metric": metric}
    about |= {"unit": "%" if "accuracy" in metric else "nats", "setting": setting}
    return [
        about
        | {"method": method, "seed": seed, "value": 50 + (method == "pc") * (gap + low_high * (seed - 1))}
        for seed in range(3)
        for method in ("pc", "post_hoc")
    ]


def test_the_first_question_is_answered_by_counting_intervals():
    """A lower likelihood loss is the better one; an interval that holds 0 counts on neither side."""
    accuracy, loss = "per_class_accuracy", "negative_log_likelihood"
    rows = [*trusted(None, accuracy, 0.04, 0.01), *trusted("stopped", accuracy, -2.0, 0.1)]
    rows += [*trusted("stopped", loss, -0.5, 0.01), *trusted("other", loss, 0.1, 1.0)]
    rows += trusted("stopped, log-prior start", accuracy, 0.0, 1.0)
    text = answers.loss_or_correction(pd.DataFrame(rows))
    assert text.startswith(
        "On frozen features with a converged head the loss and the correction are one model"
    )
    assert "one model: at most 0.0 points of per-class accuracy apart (1 setting). Where training" in text
    assert "the loss is better in per-class accuracy in 0 of 1 settings, worse in 1; in" in text
    assert "; in negative log likelihood in 1 of 2 settings, worse in 0." in text
    assert text.endswith(
        "training but for rounding: at most 0.0 points of per-class accuracy apart (1 setting)."
    )
    assert "calibration" not in text, "nothing is said of what was not measured"
    assert answers.loss_or_correction(pd.DataFrame(rows).query("method == 'pc'")) == ""


def test_the_second_question_is_answered_from_the_heads_that_training_left():
    about = {"notebook": "04", "run": "r", "dataset": "d", "frozen": False}
    gain = about | {"method": "infocam", "against": "least_likely", "than_method": "cam", "unit": "points"}
    gain |= {"metric": "gt_known", "interval": "bootstrap over images"}
    rows = [
        gain
        | {"head": head, "region": region, "than_region": region, "value": v, "low": v - 1, "high": v + 1}
        for head, region, v in (
            ("own", 1, 9.0),
            ("own", 3, 5.0),
            ("own_zero_sum", 1, 8.0),
            ("own_zero_sum", 3, 2.0),
        )
    ]
    share = about | {"head": "own", "metric": "common_share", "unit": "", "seed": 0}
    rows += [share | {"epoch": epoch, "value": value} for epoch, value in enumerate((0.2, 0.15, 0.1))]
    text = answers.gauge(pd.DataFrame(rows))
    assert text.endswith(
        "the common vector explains at most 3.0 points where an optimizer trains one from scratch."
    )
    table = answers.gauge_table(pd.DataFrame(rows)).splitlines()
    assert [c.strip() for c in table[-1].split("|")[2:-1]] == [
        "an",
        "20 → 10 %",
        "5.0 [4.0, 6.0]",
        "2.0 [1.0, 3.0]",
    ]
    named = pd.DataFrame([row | {"optimizer": "sgd", "backbone": "b", "weights": "b_w"} for row in rows])
    text = answers.gauge(named)
    assert "explains at most 3.0 points where SGD fine-tunes a pretrained network, as in the paper" in text
    assert answers.gauge(pd.DataFrame(rows[:4])) == answers.gauge_table(pd.DataFrame(rows[:4])) == ""


def test_the_second_layer_has_a_line_for_every_run_that_measured_it():
    rows = results.read_all(ROOT / "results")
    photographs = rows[rows["weights"].notna()]
    runs = set(results.select(photographs, second_layer="surprise")["run"])
    lines = answers.second_layer_table(photographs).splitlines()
    assert {line.split("]")[0][3:] for line in lines[4:]} == runs
    head = [cell.strip() for cell in lines[2].split("|")]
    for name in ("CAM + sum", "norm + sum", "norm × surprise", "spread × surprise − CAM + sum", "centre box"):
        assert name in head, name
    assert answers.second_layer_table(rows[:0]) == ""


def test_what_the_released_code_would_print_stands_in_one_line_a_run():
    about = {"notebook": "04", "run": "r", "metric": "top1_loc", "unit": "%", "seed": 0, "method": "infocam"}
    printed = {"none": 50.0, "unclamped_iou": 51.25, "running_average": 49.0, "resize_minus_one": 50.5}
    rows = pd.DataFrame([about | {"official": n, "value": v} for n, v in (printed | {"all": 60.0}).items()])
    lines = answers.defects_table(rows).splitlines()
    assert [c.strip() for c in lines[-1].split("|")[2:-1]] == ["50.0", "51.2", "49.0", "50.5", "60.0"]
    assert "| correct | IoU not clamped |" in lines[2]
    assert "boxes read as" not in lines[2], "Tiny-ImageNet's alone"
    assert answers.defects_table(rows.assign(official=None)) == ""


def test_a_run_stands_beside_the_committed_one_and_no_other_run_does():
    then = judge([claim()], pd.concat([settings(UP, run="quick"), settings(DOWN, run="paper")]))
    now = judge([claim()], settings((2.0, 4.0), run="quick"))
    table = claims.beside(then, now, "quick")
    assert table.to_numpy().tolist() == [
        ["It works", "cub200", "3.0 [2.0, 4.0] points", "2.0 [1.0, 3.0] points"]
    ]
    assert claims.beside([], now, "quick")["Committed"].tolist() == ["–"]
    assert claims.beside(then, now, "other").empty
