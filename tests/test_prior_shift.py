"""The correction as a scikit-learn classifier: its own checks, the rule of Bayes, a gain where it must be."""

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from infocam_utils import GaussianMixture, PriorShift


@parametrize_with_checks([PriorShift(LogisticRegression()), PriorShift(DecisionTreeClassifier(max_depth=3))])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def drawn(counts, seed):
    import torch

    mixture = GaussianMixture(2, means=[0.0, 1.0, 2.0], counts=counts)
    x, y = mixture.sample(counts, torch.Generator().manual_seed(seed))
    return x.numpy(), np.array(["a", "b", "c"])[y.numpy()]


def test_a_boosted_tree_gains_mean_recall_by_the_correction():
    (x, y), (unseen, truth) = drawn([4000, 400, 100], 0), drawn([2000, 2000, 2000], 1)
    plain = HistGradientBoostingClassifier(max_iter=40, max_depth=3, random_state=0)
    shifted = PriorShift(plain).fit(x, y)
    before = balanced_accuracy_score(truth, shifted.estimator_.predict(unseen))
    after = balanced_accuracy_score(truth, shifted.predict(unseen))
    assert after > before + 0.05
    best = GaussianMixture(2, means=[0.0, 1.0, 2.0], counts=[1, 1, 1]).bayes_accuracy("ml", "macro")
    assert best - 0.06 < after < best + 0.02


def test_probabilities_are_those_of_bayes_rule():
    x, y = drawn([300, 100, 50], 0)
    wanted = {"c": 0.5, "a": 0.2, "b": 0.3}
    model = PriorShift(LogisticRegression(), wanted).fit(x, y)
    p = model.estimator_.predict_proba(x) * np.array([0.2, 0.3, 0.5]) / (np.array([300, 100, 50]) / 450)
    np.testing.assert_allclose(model.predict_proba(x), p / p.sum(1, keepdims=True))
    np.testing.assert_allclose(model.train_prior_, np.array([300, 100, 50]) / 450)
    same = PriorShift(LogisticRegression(), [0.2, 0.3, 0.5]).fit(x, y)
    np.testing.assert_allclose(same.predict_proba(x), model.predict_proba(x))
    for prior, message in (({"a": 1.0}, "must name the classes"), ([0.5, 0.5], "3 shares, got 2")):
        with pytest.raises(ValueError, match=message):
            PriorShift(LogisticRegression(), prior).fit(x, y)


def test_names_of_features_are_the_classifiers_and_a_missing_label_is_told():
    import pandas as pd

    x, y = drawn([300, 100, 50], 0)
    named = PriorShift(LogisticRegression()).fit(pd.DataFrame(x, columns=["left", "right"]), y)
    assert named.feature_names_in_.tolist() == ["left", "right"]
    assert not hasattr(PriorShift(LogisticRegression()).fit(x, y), "feature_names_in_")
    with pytest.raises(ValueError, match=r"^Input y contains NaN"):
        PriorShift(LogisticRegression()).fit(x[:3], [0.0, 1.0, np.nan])


def test_a_classifier_that_counts_no_features_is_taken_too():
    class Constant(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def predict_proba(self, X):
            return np.tile([0.75, 0.25], (len(X), 1))

    model = PriorShift(Constant()).fit([[0.0]] * 4, ["a", "a", "a", "b"])
    assert not hasattr(model, "n_features_in_")
    np.testing.assert_allclose(model.predict_proba([[1.0]]), [[0.5, 0.5]])


def test_it_is_cloned_piped_and_searched():
    x, y = drawn([300, 100, 50], 0)
    model = make_pipeline(StandardScaler(), PriorShift(LogisticRegression()))
    search = GridSearchCV(model, {"priorshift__estimator__C": [0.1, 1.0]}, scoring="balanced_accuracy", cv=3)
    search.fit(x, y)
    assert search.best_score_ > 0.6
    assert clone(model).get_params()["priorshift__prior"] is None
