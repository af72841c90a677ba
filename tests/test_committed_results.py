"""The committed rows agree with themselves, and one run's with the evidence that is committed beside them."""

import json
from pathlib import Path

import pandas as pd
import pytest

from infocam_utils.experiments import localize
from infocam_utils.experiments.explorer import PAGE
from infocam_utils.reproduce import results
from infocam_utils.reproduce.results import select

RESULTS = Path(__file__).parents[1] / "results"
EVIDENCE = RESULTS / "cub-40-photos-stride16"
METHOD = ("method", "head", "against", "region", "padding")


def runs(notebook: str) -> list[str]:
    return sorted(path.parent.name for path in RESULTS.glob(f"*/{notebook}.json"))


def named(run: str) -> pd.DataFrame:
    return results.read(RESULTS / run / "04.json").rows


def means(rows: pd.DataFrame, columns: list[str]) -> pd.Series:
    """Mean value by method, what is not applicable being a name like any other."""
    text = rows[columns].astype("object").where(rows[columns].notna(), "–").astype(str)
    return rows["value"].groupby([text[c] for c in columns]).mean()


@pytest.mark.parametrize("run", runs("04"))
def test_what_is_bootstrapped_is_the_mean_over_seeds(run):
    rows = select(named(run), metric=["gt_known", "top1_loc"], than_method=None)
    rows = select(rows, images=None, official=None, common_length=None)
    columns = [*METHOD, "metric"]
    over_images = means(select(rows, interval="bootstrap over images"), columns)
    of_seeds = means(rows[rows["seed"].notna()], columns)
    assert len(over_images) >= 40
    pd.testing.assert_series_equal(over_images, of_seeds, check_names=False, rtol=1e-12)


@pytest.mark.parametrize("run", runs("04"))
def test_a_paired_difference_is_that_of_the_two_methods(run):
    rows = select(named(run), interval="bootstrap over images")
    single = means(select(rows, than_method=None), [*METHOD, "metric"])
    pairs = rows[rows["than_method"].notna()]
    second = pairs[[f"than_{c}" for c in METHOD]].set_axis([*METHOD], axis=1).assign(metric=pairs["metric"])
    assert len(pairs) >= 60
    for row, other in zip(pairs.to_dict("records"), second.to_dict("records"), strict=True):
        values = [
            single[tuple("–" if pd.isna(r[c]) else str(r[c]) for c in (*METHOD, "metric"))]
            for r in (row, other)
        ]
        assert row["value"] == pytest.approx(values[0] - values[1], abs=1e-9)


@pytest.mark.parametrize("run", runs("03"))
def test_the_excess_of_log_k_minus_ce_does_not_depend_on_the_network(run):
    rows = select(results.read(RESULTS / run / "03.json").rows, metric="mutual_information")
    lead = results.difference(rows, {"method": "log_k_minus_ce"}, {"method": "softmax"})
    spread = lead.groupby("dataset")["value"].agg(["min", "max"])
    assert (spread["min"] > 0).all()  # log K + mean log π_y of the test labels
    assert ((spread["max"] - spread["min"]) < 0.01).all()


def test_localization_of_the_first_seed_recomputes_from_its_evidence():
    rows = named(EVIDENCE.name)
    test, held = (
        localize.load(next((EVIDENCE / "evidence").glob(f"*-{part}-seed0.npz")))
        for part in ("test", "heldout")
    )
    setting = {c: rows[c].dropna().iloc[0] for c in ("dataset", "backbone", "weights", "stride") if c in rows}
    again = results.tidy(localize.rows([test], [held], [0], setting))
    keys = [*METHOD, "metric"]
    metrics = ["gt_known", "top1_loc", "oracle_gt_known", "max_box_acc_v2", "accuracy", "mutual_information"]
    old = select(rows, seed=0, metric=metrics, images=None, official=None, common_length=None)
    new = select(again, seed=0, metric=metrics)
    assert len(new) >= 80
    pd.testing.assert_series_equal(means(old, keys), means(new, keys), check_names=False, rtol=1e-9)


def test_half_of_the_test_images_choose_and_the_others_are_scored():
    test, held = (
        localize.load(next((EVIDENCE / "evidence").glob(f"*-{part}-seed0.npz")))
        for part in ("test", "heldout")
    )
    assert len(test.ids) + len(held.ids) == 1108
    assert not set(test.ids) & set(held.ids)


def test_the_committed_page_with_sliders_is_todays_template():
    """So that a change of the template is not forgotten where the README sends its visitors."""
    before, after = PAGE.read_text(encoding="utf-8").split("/*DATA*/null")
    page = (RESULTS / "quick" / "04_explorer.html").read_text(encoding="utf-8")
    assert page.startswith(before)
    assert page.endswith(after)
    known = json.loads(page[len(before) : -len(after)])
    assert len(known["images"]) == 8
    assert len(page) < 300_000
