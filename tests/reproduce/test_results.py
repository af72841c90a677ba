"""Tidy results: the common form, files, intervals over seeds, paired differences, comparison, words."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from infocam_utils.reproduce import results


def accuracies(method, values, n=1000, **more):
    rows = pd.DataFrame({"seed": range(len(values)), "value": values})
    p = rows["value"] / 100
    return rows.assign(
        method=method, metric="accuracy", unit="%", n=n, stderr=100 * (p * (1 - p) / n) ** 0.5, **more
    )


ROWS = pd.concat(
    [
        accuracies("softmax", [80.0, 81.5, 79.0], dataset="birds", few=3, frozen=False),
        accuracies("pc", [82.0, 84.5, 83.0], dataset="birds", few=3, frozen=False),
        pd.DataFrame(
            {
                "dataset": ["birds"] * 3,
                "method": ["exact", "infocam", "infocam"],
                "against": [None, "others", "others"],
                "region": [None, 3, 3],
                "than_method": [None, "cam", None],
                "metric": ["mutual_information", "gt_known", "gt_known"],
                "unit": ["nats", "points", "%"],
                "value": [1 / 3, 2.5, 61.0],
                "low": [1 / 3, 0.5, 58.0],
                "high": [1 / 3, 4.5, 64.0],
                "stderr": [0.0, 1.02, 1.5],
                "interval": ["exact", "bootstrap over images", "bootstrap over images"],
                "n": [None, 500, 500],
            }
        ),
    ],
    ignore_index=True,
)
PARAMETERS = {"profile": "quick", "seeds": [0, 1, 2], "recipe": {"stride": 16}, "weights": None}


def written(folder, rows=ROWS, notebook="03_task", **changes):
    path = results.write(notebook, rows, parameters=PARAMETERS | changes, output_dir=folder)
    return results.read(path)


# The common form


def test_rows_come_back_bit_equal_with_their_types(tmp_path):
    assert written(tmp_path).rows.equals(results.tidy(ROWS))
    text = (tmp_path / "results" / "03.csv").read_text()
    assert repr(1 / 3) in text  # every digit
    rows = results.read_rows(tmp_path / "results" / "03.csv")
    written(tmp_path / "again", rows)
    assert (tmp_path / "again" / "results" / "03.csv").read_text() == text


def test_all_parameters_and_no_place_of_this_machine_are_kept(tmp_path):
    namespace = {
        "data_dir": "/a/data",
        "recipe": {"weights": "/a/b/net.pt"},
        "seeds": [0],
        "In": ["x"],
        "_": 1,
        "f": print,
    }
    assert results.parameters(namespace) == {"recipe": {"weights": "net.pt"}, "seeds": [0]}
    made = written(tmp_path, dataset="/a/b/birds")
    assert made.parameters == PARAMETERS | {"dataset": "birds"}
    assert "/a/b" not in (tmp_path / "results" / "03.json").read_text()
    assert made.notebook == "03_task"
    assert made.profile == "quick"
    assert made.provenance["versions"]["torch"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "bits"}, "unit must be one of"),
        ({"value": math.nan}, "must be finite"),
        ({"low": 90.0, "high": 95.0}, "must hold its value"),
        ({"seed": 1}, "seeds must be distinct"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    rows = accuracies("softmax", [80.0, 81.5])
    rows.loc[0, list(change)] = list(change.values())
    with pytest.raises(ValueError, match=message):
        results.tidy(rows)


def test_equal_seeds_give_no_interval_of_width_zero():
    twice = pd.concat([accuracies("softmax", [80.0])] * 2)
    with pytest.raises(ValueError, match="distinct"):
        results.over_seeds(twice)


def test_columns_are_needed():
    with pytest.raises(ValueError, match=r"need the columns \['metric', 'unit'\]"):
        results.tidy(pd.DataFrame({"value": [1.0]}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda j, c: c.write_text(c.read_text().replace("80.0", "89.0")),
        lambda j, c: c.write_bytes(c.read_bytes()[:-20]),
        lambda j, c: c.unlink(),
        lambda j, c: j.write_text(j.read_text()[:50]),
        lambda j, c: j.write_text("[]"),
        lambda j, c: j.write_text("null"),
        lambda j, c: j.write_text("[" * 100_000 + "]" * 100_000),
        lambda j, c: j.write_text(json.dumps(json.loads(j.read_text()) | {"parameters": 3})),
        lambda j, c: j.write_bytes(b"\xff\xfe\x00"),
    ],
)
def test_damaged_results_are_refused_by_name(tmp_path, damage):
    written(tmp_path)
    path = tmp_path / "results" / "03.json"
    damage(path, path.with_suffix(".csv"))
    with pytest.raises(ValueError, match=r"03\.json and its \.csv are no results .* run the notebook again"):
        results.read(path)


def test_all_results_carry_their_run(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b", notebook="04_other")
    rows = results.read_all(tmp_path)
    assert sorted(set(rows["notebook"])) == ["03", "04"]
    assert set(rows["profile"]) == {"quick"}
    assert len(rows) == 2 * len(ROWS)
    assert len(results.read_all(tmp_path / "nothing")) == 0


# Selecting and summarising


def test_selection_by_columns():
    assert results.select(ROWS, method="infocam", than_method=None)["value"].tolist() == [61.0]
    assert results.select(ROWS, method=["pc", "softmax"], few=3)["value"].tolist() == [
        80,
        81.5,
        79,
        82,
        84.5,
        83,
    ]
    assert results.select(ROWS, nothing_like_it="x").empty
    assert len(results.select(ROWS, nothing_like_it=None)) == len(ROWS)


def test_interval_over_seeds_is_student_s():
    low, high = results.interval([1.0, 2.0, 4.0])
    reference = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval()
    assert (low, high) == pytest.approx((reference.low, reference.high))


def test_interval_of_a_share_stays_inside_and_agrees_where_the_border_is_far():
    low, high = results.interval([98.5, 99.8, 99.9], share=True)
    assert 0 < low < 99.4 < high < 100
    near = results.interval([50.0, 50.1, 50.3], share=True)
    assert near == pytest.approx(results.interval([50.0, 50.1, 50.3]), abs=1e-3)
    assert results.interval([100.0, 100.0], share=True) == (100.0, 100.0)
    assert all(math.isnan(end) for end in results.interval([3.0]))


def test_summary_over_seeds_keeps_what_has_an_interval_of_its_own():
    summary = results.over_seeds(ROWS)
    assert len(summary) == 5
    pc = results.select(summary, method="pc").iloc[0]
    assert pc["value"] == pytest.approx(np.mean([82, 84.5, 83]))
    assert (pc["seeds"], pc["interval"]) == (3, "t over seeds")
    boot = results.select(summary, than_method="cam").iloc[0]
    assert (boot["low"], boot["high"], boot["interval"]) == (0.5, 4.5, "bootstrap over images")


def test_difference_is_paired_within_the_seed():
    lead = results.difference(ROWS, {"method": "pc"}, {"method": "softmax"})
    assert lead["value"].tolist() == [2.0, 3.0, 4.0]
    assert set(lead["unit"]) == {"points"}
    assert set(lead["than_method"]) == {"softmax"}
    shuffled = results.difference(
        ROWS.sample(frac=1, random_state=0), {"method": "pc"}, {"method": "softmax"}
    )
    assert sorted(zip(shuffled["seed"], shuffled["value"], strict=True)) == [(0, 2.0), (1, 3.0), (2, 4.0)]
    with pytest.raises(ValueError, match="no seed has both"):
        results.difference(ROWS, {"method": "pc"}, {"method": "nwj"})


# Comparing two runs


def differences(old, new, tmp_path, **changes):
    return results.compare(written(tmp_path / "old", old), written(tmp_path / "new", new, **changes))


def moved(by, rows=ROWS, **columns):
    rows = rows.copy()
    rows.loc[results.select(rows, **columns).index, "value"] += by
    return rows


def test_a_run_agrees_with_itself(tmp_path):
    assert differences(ROWS, ROWS, tmp_path) == []


@pytest.mark.parametrize(("seeds", "n"), [(3, 1000), (3, 100_000), (1, 1000)])
def test_tolerance_follows_from_images_and_seeds(tmp_path, seeds, n):
    rows = accuracies("softmax", [80.0] * seeds, n=n)
    bound = 3 * math.sqrt(2) * 100 * math.sqrt(0.8 * 0.2 / n / seeds)
    assert differences(rows, moved(0.95 * bound, rows), tmp_path) == []
    (found,) = differences(rows, moved(1.05 * bound, rows), tmp_path)
    assert "committed 80" in found


def test_a_share_without_seed_or_interval_has_the_tolerance_of_its_images(tmp_path):
    rows = accuracies("softmax", [80.0], n=1000).drop(columns=["seed", "stderr"])
    assert differences(rows, moved(5.0, rows), tmp_path / "a") == []
    assert len(differences(rows, moved(6.0, rows), tmp_path / "b")) == 1


def test_a_mean_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="names no row"):
        results.over_seeds(ROWS[ROWS["method"] == "no such method"])


def test_seeds_that_differ_more_than_their_images_explain_set_the_tolerance(tmp_path):
    rows = accuracies("softmax", [76.0, 80.0, 84.0], n=1_000_000)
    bound = 3 * math.sqrt(2) * 4.0 / math.sqrt(3)
    assert differences(rows, moved(0.95 * bound, rows), tmp_path / "a") == []
    assert len(differences(rows, moved(1.05 * bound, rows), tmp_path / "b")) == 1


@pytest.mark.parametrize(("frozen", "seeds", "count"), [(False, 1, 0), (True, 1, 1), (False, 2, 1)])
def test_one_network_trained_anew_is_not_held_against_another(tmp_path, frozen, seeds, count):
    rows = accuracies("softmax", [80.0] * seeds, n=1000).assign(frozen=frozen)
    assert len(differences(rows, moved(10.0, rows), tmp_path)) == count


def test_exact_numbers_must_agree_to_rounding(tmp_path):
    rows = ROWS.drop(columns=["low", "high"])
    assert differences(rows, moved(1e-12, rows, method="exact"), tmp_path / "a") == []
    assert len(differences(rows, moved(1e-6, rows, method="exact"), tmp_path / "b")) == 1


@pytest.mark.parametrize(("now", "half", "lost"), [(-0.5, 0.3, True), (-0.5, 2, False), (4.4, 2, False)])
def test_an_effect_of_the_other_sign_counts_although_it_is_near(tmp_path, now, half, lost):
    rows = ROWS.copy()  # 2.5 [0.5, 4.5] points; the tolerance alone would be 4.9
    rows.loc[results.select(rows, than_method="cam").index, ["value", "low", "high"]] = [
        now,
        now - half,
        now + half,
    ]
    found = differences(ROWS, rows, tmp_path)
    assert len(found) == lost
    assert not lost or "sure of the other sign" in found[0]


def test_a_difference_that_was_exactly_zero_may_move_by_three_images(tmp_path):
    zero = {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "stderr": 0.0,
        "n": 1000,
        "interval": "bootstrap over images",
    }
    rows = pd.DataFrame(
        [zero | {"method": "infocam", "than_method": "cam", "metric": "gt_known", "unit": "points"}]
    )
    for moved_by, count in ((0.2, 0), (0.4, 1)):
        fresh = rows.assign(value=moved_by, low=0.0, high=1.0)
        assert len(differences(rows, fresh, tmp_path / str(count))) == count


def test_an_interval_of_a_positive_number_stays_positive():
    low, high = results.interval([0.001, 0.009, 0.02], positive=True)
    assert 0 < low < 0.01 < high
    near = results.interval([0.0100, 0.0101, 0.0103], positive=True)
    assert near == pytest.approx(results.interval([0.0100, 0.0101, 0.0103]), rel=1e-3)
    rows = pd.DataFrame({"metric": "worst_error", "unit": "nats", "seed": [0, 1], "value": [0.001, 0.02]})
    assert results.over_seeds(rows)["low"].iloc[0] > 0


def test_several_data_sets_stay_several_without_their_folders():
    assert results.parameters({"dataset": "/x/birds-a,/y/birds-b,digits"}) == {
        "dataset": "birds-a,birds-b,digits"
    }


def test_what_only_one_side_has_counts(tmp_path):
    fewer = ROWS[ROWS["method"] != "exact"]
    assert any("not among the fresh" in line for line in differences(ROWS, fewer, tmp_path / "a"))
    assert any("not among the committed" in line for line in differences(fewer, ROWS, tmp_path / "b"))


def test_parameters_and_notebook_count(tmp_path):
    assert differences(ROWS, ROWS, tmp_path / "a", recipe={"stride": 32}) != []
    old, new = written(tmp_path / "b"), written(tmp_path / "c")
    assert any(
        line.startswith("notebook") for line in results.compare(old, replace(new, notebook="03_other"))
    )


def test_nan_never_agrees(tmp_path):
    old, new = written(tmp_path / "b"), written(tmp_path / "c")
    rows = new.rows.copy()
    rows.loc[0, "value"] = math.nan
    with pytest.raises(ValueError, match="finite"):
        results.compare(old, replace(new, rows=rows))


def test_seconds_and_choices_may_differ(tmp_path):
    clock = pd.DataFrame(
        {"metric": ["training", "threshold"], "unit": ["s", ""], "value": [3.0, 0.2], "seed": [0, 0]}
    )
    assert differences(clock, clock.assign(value=[9.0, 0.9]), tmp_path) == []


# Words


def test_two_different_settings_never_read_alike():
    base = {
        "dataset": "cub",
        "backbone": "mobilenet_v2",
        "weights": "imagenet",
        "stride": 32,
        "few": 10,
        "head": "free",
    }
    other = [
        {"stride": 16},
        {"few": 3},
        {"head": "decayed"},
        {"weights": "birds"},
        {"dataset": "tiny"},
        {"many": 20},
    ]
    words = {results.setting_words(base | change) for change in [{}, *other, {"frozen": False}]}
    assert len(words) == 1 + len(other) + 1


def test_numbers_for_people():
    row = {"value": -0.04, "low": -0.06, "high": 0.04, "unit": "points"}
    assert results.number(row) == "0.0 [−0.1, 0.0] points"  # no negative zero, a real minus
    exact = {"value": 1.2345678, "low": 1.2345678, "high": 1.2345678, "interval": "exact", "unit": "nats"}
    assert results.number(exact) == "1.2346 nats"
    row = {"method": "infocam", "against": "others", "region": 3, "padding": "full"}
    row |= {"than_method": "cam", "than_region": 3, "than_padding": "full"}
    words = "infoCAM against the others' mean + 3×3 sum, full − CAM + 3×3 sum, full"
    assert results.difference_words(row) == words
