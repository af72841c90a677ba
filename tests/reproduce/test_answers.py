"""The sentences of README and notebooks, from made rows; the two open questions are in test_claims.py."""

import pandas as pd

from infocam_utils.reproduce import answers, results


def test_shuffled_labels_carry_nothing():
    about = {"labels": "permuted", "metric": "mutual_information", "unit": "nats"}
    rows = [
        about | {"method": method, "seed": seed, "value": value + 0.001 * seed}
        for method, value in (("softmax", -0.001), ("log_k_minus_ce", 0.12))
        for seed in (0, 1, 2)
    ]
    text = answers.answer("01", pd.DataFrame(rows))
    assert "it reads 0.000 [−0.002, 0.002] nats, and log K − CE 0.121 [0.119, 0.123] nats" in text
    assert answers.answer("01", pd.DataFrame(rows[:3])) == ""


def test_the_worst_run_is_the_one_that_is_told():
    rows = [
        {
            "shares": shares,
            "method": method,
            "metric": metric,
            "unit": "nats",
            "seed": seed,
            "run": run,
            "value": v,
        }
        for run, worse in (("quick", 2.0), ("paper", 1.0))
        for shares, method, metric, value in (
            ("balanced", "softmax", "worst_error", 0.01),
            ("imbalanced", "pc", "worst_error", 0.02),
            ("imbalanced", "log_k_minus_ce", "mean_error", 0.1),
        )
        for seed, v in ((0, worse * value), (1, worse * value * 1.1))
    ]
    text = answers.answer("02", pd.DataFrame(rows))
    for words in ("softmax is off by 0.0210 [", "PC-softmax by 0.0420 [", "overshoots there by 0.2100 ["):
        assert words in text, text
    assert answers.answer("02", pd.DataFrame(rows[:2])) == ""


def test_a_gain_is_told_with_its_ends_and_its_sure_cases():
    about = {"metric": "gt_known", "unit": "points", "method": "infocam", "than_method": "cam"}
    rows = pd.DataFrame(
        [
            about | {"run": run, "value": value, "low": value - 1, "high": value + 1, "interval": "bootstrap"}
            for run, value in (("a", 3.0), ("b", 0.5), ("c", -2.0))
        ]
    )
    text = answers.gain(rows, "Gain:", {"method": "infocam"}, {"method": "cam"})
    assert text == "Gain: −2.0 to 3.0 points (interval above 0 in 1 of 3 settings, below in 1). "
    assert answers.gain(rows.assign(than_method=None), "", {"method": "infocam"}, {"method": "cam"}) == ""


def test_every_notebook_has_its_question_and_a_line_for_each_sentence(monkeypatch):
    rows = pd.DataFrame({"notebook": [], "metric": [], "unit": [], "value": []})
    asked = [line for line in answers.listing(rows).splitlines() if line]
    assert [line[3:5] for line in asked] == ["01", "02", "03", "04"]
    monkeypatch.setattr(answers, "answer", lambda number, _: f"In {number}, 0.5 [0.4, 0.6] nats. And 1.0. ")
    said = answers.listing(rows).split("\n\n")
    assert (
        said[0]
        == "**[01](notebooks/01_mi_theory.ipynb) Why is a classifier an estimator of mutual information?**"
    )
    assert said[1] == "- In 01, 0.5 [0.4, 0.6] nats.\n- And 1.0."
    assert results.grid(["a"], []) == "| a |\n| --- |"
