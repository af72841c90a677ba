"""The correction for class shares, for any classifier of scikit-learn: a tree, a forest, a boosted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from infocam_utils.information import class_prior, shift_prior


class PriorShift(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A classifier whose probabilities hold for other class shares than those it was trained under.

    Fits a clone of `estimator`, and returns `p π′/π` divided by its sum, with π the training labels' shares:
    the posterior under π′ of a classifier that is calibrated under π (post-hoc logit adjustment, Menon et al.
    2021). For π′ uniform, the default, its argmax is the best decision for the mean recall of the classes.

    Parameters
    ----------
    estimator : a classifier with `predict_proba`
    prior : π′, shares in the order of `classes_`, or a mapping from class to share; None is uniform

    Attributes
    ----------
    estimator_, classes_ : the fitted classifier, and its classes
    train_prior_ : π, (K,)

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> x, y = np.array([[0.0], [1.0]] * 3 + [[0.0]] * 4), np.array(["bird", "wing"] * 3 + ["bird"] * 4)
    >>> model = PriorShift(LogisticRegression()).fit(x, y)
    >>> model.estimator_.predict([[0.6]]).item(), model.predict([[0.6]]).item()
    ('bird', 'wing')
    """

    def __init__(self, estimator: Any, prior: Sequence[float] | Mapping[Any, float] | None = None) -> None:
        self.estimator = estimator
        self.prior = prior

    def fit(self, X: Any, y: Any, **options: Any) -> PriorShift:
        """Fit the classifier; `options` are its own."""
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        self.estimator_ = clone(self.estimator).fit(X, y, **options)
        self.classes_ = self.estimator_.classes_
        if hasattr(self.estimator_, "n_features_in_"):
            self.n_features_in_ = self.estimator_.n_features_in_
        if hasattr(self.estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.estimator_.feature_names_in_
        labels = np.searchsorted(self.classes_, y)
        self.train_prior_ = class_prior(labels, len(self.classes_)).numpy()
        self._wanted()  # refused now rather than at the first prediction
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (N, K) under the other shares."""
        check_is_fitted(self)
        given = torch.as_tensor(np.asarray(self.estimator_.predict_proba(X), dtype=np.float64))
        return shift_prior(given, self.train_prior_, self._wanted(), "probabilities").numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class (N,) under the other shares."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _wanted(self) -> np.ndarray | None:
        if self.prior is None:
            return None
        if isinstance(self.prior, Mapping):
            if set(self.prior) != set(self.classes_.tolist()):
                raise ValueError(
                    f"prior must name the classes {self.classes_.tolist()}, named {list(self.prior)}"
                )
            shares = np.array([self.prior[name] for name in self.classes_.tolist()], dtype=np.float64)
        else:
            shares = np.asarray(self.prior, dtype=np.float64)
        if len(shares) != len(self.classes_):
            raise ValueError(f"prior must have {len(self.classes_)} shares, got {len(shares)}")
        return shares

    def __sklearn_tags__(self) -> Any:
        """What the classifier inside can take."""
        from sklearn.utils import get_tags

        tags, inner = super().__sklearn_tags__(), get_tags(self.estimator)
        tags.input_tags.sparse = inner.input_tags.sparse
        tags.input_tags.allow_nan = inner.input_tags.allow_nan
        tags.classifier_tags.multi_class = inner.classifier_tags.multi_class
        return tags
