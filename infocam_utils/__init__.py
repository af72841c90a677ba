"""Reference companion to "Rethinking Softmax with Cross-Entropy" (arXiv 1911.10688).

The names below are what people import; everything else is in the modules.

>>> from infocam_utils import PCSoftmaxLoss, class_prior
>>> loss = PCSoftmaxLoss(class_prior([0, 0, 1], num_classes=2))
"""

from importlib import import_module
from typing import Any

_HOME = {
    "information": "Estimate PCSoftmaxLoss class_prior entropy log_pc_softmax mutual_information "
    "per_class_accuracy pointwise_mutual_information recalls shift_prior",
    "gaussians": "GaussianMixture",
    "cam": "class_activation_maps feature_norm_maps info_cam spread_maps",
    "explain": "Explanation InfoCAM",
    "prior_shift": "PriorShift",
    "estimators": "check_estimator",
    "localization": "boxes_from_maps localization_accuracy max_box_acc max_box_acc_v2 normalise_maps pxap "
    "select_threshold",
    "data.images": "Geometry ImageSet prepare",
    "data.sets": "load_images",
    "data.splits": "ImbalanceRule half_split imbalanced_subset stratified_split",
    "classifiers.adapt": "Classifier adapt",
    "classifiers.backbones": "classifier",
    "classifiers.training": "fit pooled_features predict",
    "classifiers.heads": "fit_head",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = ["__version__", *sorted(_MODULE)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("infocam")
    # On demand, so that `infocam --help` does not wait for torch.
    if name in _MODULE:
        return getattr(import_module(f"infocam_utils.{_MODULE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
