"""How a data set becomes a classifier: the recipe, and networks that are trained once.

A recipe and a seed determine a network. Trained networks are kept in the store under everything that can
change them (recipe, seed, images, weights, code), so experiments share them and a second run takes seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from infocam_utils.classifiers import backbones, heads, training
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.data import sets, store
from infocam_utils.data.images import IMAGENET_MEAN, IMAGENET_STD, Geometry, ImageSet, prepare
from infocam_utils.data.splits import ImbalanceRule, imbalanced_subset
from infocam_utils.information import Kind, PCSoftmaxLoss, check_choice, class_prior

# What `training.fit` takes from a recipe as it is.
HISTORY = "common_share"  # in the store, beside a network's tensors
FITTING = (
    *("geometry", "lr", "batch_size", "weight_decay", "optimizer", "schedule", "batch_norm", "precision"),
    "devices",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that turns a data set and a seed into a classifier; all values are JSON.

    :func:`recipe` fills in a data set's defaults.

    Attributes
    ----------
    dataset : a data set's name or folder
    backbone, weights, stride, adl : see :func:`infocam_utils.classifiers.backbones.classifier`
    size : side of the stored images, in pixels
    resize, crop, flip : from there to the network's input, see :class:`infocam_utils.data.images.Geometry`
    few, many : training images of each rare and each common class; few=None trains on all images, many=None
        keeps all of the common classes
    train_limit : training images at most, spread over the list before `few` and `many` choose
    loss : "softmax", cross-entropy; "pc", PC-softmax under the training set's class shares
    log_prior_bias : the head's bias starts at log π, so that a plain softmax need not learn the shares; of a
        head that is fitted first, the fit starts there
    frozen : only a linear head is trained, on features computed once (the paper's way with CUB)
    passes : training images seen, epochs times images
    batch_size, lr, weight_decay, optimizer, schedule, batch_norm, precision, devices : see
        :func:`infocam_utils.classifiers.training.fit`
    head_lr : multiple of `lr` for the linear layer, new on a pretrained network
    head_start : of the linear layer of a network that is trained: "random", PyTorch's; "zero"; or "fitted" on
        the features as they come, so that its first gradients do not destroy them
    head_optimizer, head_decay : of the head on frozen features; head_decay=None chooses it off the test set

    >>> digits = recipe("digits")
    >>> Recipe(**json.loads(json.dumps(asdict(digits)))) == digits
    True
    """

    dataset: str
    backbone: str
    weights: str | None
    stride: int | None
    adl: bool
    size: int
    resize: int | None
    crop: int | None
    flip: bool
    few: int | None
    many: int | None
    train_limit: int | None
    loss: Kind
    log_prior_bias: bool
    frozen: bool
    passes: int
    batch_size: int
    lr: float
    head_lr: float
    head_start: Literal["random", "zero", "fitted"]
    weight_decay: float
    optimizer: Literal["adamw", "sgd"]
    schedule: Literal["onecycle", "constant", "step"]
    batch_norm: Literal["adapt", "frozen"]
    head_optimizer: Literal["adamw", "lbfgs"]
    head_decay: float | None
    precision: str
    devices: int

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, training.PRECISIONS)
        for name, kind in get_type_hints(Recipe).items():
            kinds, value = get_args(kind) or (kind,), getattr(self, name)
            if float in kinds and type(value) is int:  # so that equal recipes are written alike
                object.__setattr__(self, name, value := float(value))
            if get_origin(kind) is Literal:
                check_choice(name, value, kinds)
            elif type(value) not in kinds:
                raise TypeError(f"{name} must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
            decay = name in ("weight_decay", "head_decay")
            if type(value) in (int, float) and not (0 < value < math.inf or (decay and value == 0)):
                raise ValueError(f"{name} must be above 0 (a decay may be 0) and finite, got {value}")
        self.geometry.sizes(self.size)  # refuses a crop that does not fit

    @property
    def geometry(self) -> Geometry:
        """From the stored image to the network's input."""
        return Geometry(self.resize, self.crop, self.flip)

    def columns(self) -> dict[str, Any]:
        """What tells recipes apart in tables, names without folders; the stride in force.

        >>> recipe("minibirds").columns()["stride"]
        8
        """
        own = next(iter(backbones.STRIDES.get(self.backbone, ())), None)
        return {
            "dataset": sets.short_name(self.dataset),
            "backbone": self.backbone,
            "weights": None if self.weights is None else Path(self.weights).stem,
            "stride": self.stride or own,
            "frozen": self.frozen,
            "few": self.few,
            "many": self.many,
        }


def recipe(dataset: str | Path, data_dir: str | Path | None = None, **changes: Any) -> Recipe:
    """The recipe of a data set: its own defaults, and what the caller wants otherwise.

    Parameters
    ----------
    dataset : as :func:`infocam_utils.data.sets.locate` finds it; a relative path is looked up from here, now
    changes : fields of :class:`Recipe`; None takes the default. `weights` is "imagenet", "none", or a file,
        which may also be named as it lies in the data directory; `precision` may be "32", exact, or "auto",
        what :func:`infocam_utils.classifiers.training.best_precision` measures on this machine.

    Raises
    ------
    TypeError : an unknown field, with near matches, or a value of another type
    ValueError, FileNotFoundError : a value that cannot be, a data set or file that is not there

    >>> recipe("digits", passes=500).passes
    500
    """
    names = [field.name for field in fields(Recipe)]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names) or names
            raise TypeError(f"a recipe has no field {name!r}; did you mean one of {', '.join(near)}?")
    root, folder = store.data_root(data_dir), sets.locate(dataset, data_dir)
    given = {name: value for name, value in changes.items() if value is not None}
    made = {**sets.describe(dataset, data_dir).recipe, **given}
    made["dataset"] = str(Path(dataset) if folder == root / dataset else folder)
    weights = made["weights"]
    if weights not in (None, "none", "imagenet"):
        there = [path for path in (Path(weights).expanduser(), root / weights) if path.is_file()]
        if not there:
            places = f"neither from {Path.cwd()} nor in {root}"
            raise FileNotFoundError(f"no weights file {weights}, {places}; pass one, 'imagenet' or 'none'")
        weights = str(there[0].resolve())
    if made["precision"] in ("auto", "32"):
        made["precision"] = training.best_precision() if made["precision"] == "auto" else "32-true"
    return Recipe(**made | {"weights": None if weights == "none" else weights})


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse no seed, and a seed given twice: one run counted twice makes an interval too short.

    >>> check_seeds([0, 0])
    Traceback (most recent call last):
    ValueError: seeds must be distinct, and at least one, got [0, 0]
    """
    if not 0 < len(set(seeds)) == len(seeds):
        raise ValueError(f"seeds must be distinct, and at least one, got {list(seeds)}")


def imbalance_rule(recipe: Recipe, images: ImageSet, data_dir: str | Path | None = None) -> ImbalanceRule:
    """The data set's rule for its training `images`, with the recipe's `few` and `many` where it has them."""
    rule_for = sets.describe(recipe.dataset, data_dir).train_rule
    if recipe.few is not None:  # then the rule only says which classes are rare, however few images they have
        enough = torch.arange(images.num_classes).repeat(10)
        return replace(rule_for(enough), few=recipe.few, many=recipe.many)
    rule = rule_for(images.labels)
    return rule if recipe.many is None else replace(rule, many=recipe.many)


def training_rows(
    recipe: Recipe, images: ImageSet, seed: int | None, data_dir: str | Path | None = None
) -> Tensor:
    """Which of a data set's training `images` the recipe trains on, ascending.

    With `few`, the first of each class in an order drawn from the seed; seed=None walks the list in its own
    order, which gives the paper's list.
    """
    if recipe.few is not None:
        return kept_rows(images, imbalance_rule(recipe, images, data_dir), seed)
    if recipe.many is not None:
        raise ValueError(f"many={recipe.many} needs few, the images of a rare class; give both or neither")
    return torch.arange(len(images))


def kept_rows(images: ImageSet, rule: ImbalanceRule, seed: int | None) -> Tensor:
    """Rows that an imbalance rule keeps, ascending where the order is drawn from a seed."""
    if seed is None:
        return imbalanced_subset(images.labels, rule, class_numbers=images.class_numbers)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = imbalanced_subset(images.labels[order], rule, class_numbers=images.class_numbers)
    return order[chosen].sort().values


def training_set(recipe: Recipe, seed: int, data_dir: str | Path | None = None) -> ImageSet:
    """The images that a recipe and a seed train on.

    >>> len(training_set(recipe("digits", few=12, many=120), seed=0))
    660
    """
    images = _all_images(recipe, data_dir)
    rows = training_rows(recipe, images, seed, data_dir)
    return images if len(rows) == len(images) else images.subset(rows)


def _all_images(recipe: Recipe, data_dir: str | Path | None) -> ImageSet:
    return sets.load_images(recipe.dataset, "train", data_dir, size=recipe.size, limit=recipe.train_limit)


def untrained(recipe: Recipe, num_classes: int, seed: int) -> Classifier:
    """The recipe's classifier before training; its random weights come from the seed alone."""
    options: dict[str, Any] = {"stride": recipe.stride, "adl": recipe.adl}
    if backbones.STRIDES.get(recipe.backbone) == ():  # without maps: its layers depend on the image's size
        options["image_size"] = recipe.geometry.sizes(recipe.size)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbones.classifier(recipe.backbone, num_classes, recipe.weights, **options)


def loss_of(kind: Kind, prior: Tensor) -> nn.Module:
    """Cross-entropy of the plain softmax, or of the probability-corrected one.

    >>> type(loss_of("pc", torch.tensor([0.5, 0.5]))).__name__
    'PCSoftmaxLoss'
    """
    check_choice("loss", kind, get_args(Kind))
    return PCSoftmaxLoss(prior) if kind == "pc" else nn.CrossEntropyLoss()


def network(recipe: Recipe, seed: int, data_dir: str | Path | None = None) -> Classifier:
    """The network that a recipe and a seed determine, from the store when it was trained before.

    With ``frozen`` it is the untrained one. An interrupted training goes on from its last checkpoint. Under
    ``torchrun`` all processes must ask for it: they train together, are the recipe's `devices`, and the first
    one's store decides and keeps.
    """
    return with_history(recipe, seed, data_dir)[0]


def with_history(
    recipe: Recipe, seed: int, data_dir: str | Path | None = None
) -> tuple[Classifier, np.ndarray]:
    """The network, and `cam.common_share` of its class weights at the start and after each epoch.

    A frozen network's linear layer is not trained: then there is no number.
    """
    if recipe.frozen:
        return untrained(recipe, _all_images(recipe, data_dir).num_classes, seed).eval(), np.empty(0)
    if "LOCAL_WORLD_SIZE" in os.environ:
        recipe = replace(recipe, devices=int(os.environ["WORLD_SIZE"]))
    train = training_set(recipe, seed, data_dir)
    model = untrained(recipe, train.num_classes, seed)
    shares = class_prior(train.labels, train.num_classes)
    key = {
        **asdict(recipe),
        "dataset": train.key,
        "weights": backbones.weights_digest(recipe.weights),
        "seed": seed,
        "code": store.code_digest("experiments.recipe"),
    }
    keeper = store.Store(data_dir)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    checkpoint = keeper.folder / f"checkpoint-{name}.pt"
    options = {option: getattr(recipe, option) for option in FITTING}
    options |= {"lr_factors": {"linear": recipe.head_lr}, "seed": seed, "checkpoint": checkpoint}

    def fitted(_: store.Draft | None = None) -> Mapping[str, Tensor]:
        epochs = max(1, round(recipe.passes / len(train)))
        loss = loss_of(recipe.loss, shares)
        if recipe.head_start == "fitted":
            how: dict[str, Any] = {"geometry": recipe.geometry, "precision": recipe.precision}
            features = training.pooled_features(model, train, store=keeper, **how)
            model.linear = fitted_head(recipe, features, train.labels, train.num_classes, loss, seed)
        elif recipe.head_start == "zero":
            nn.init.zeros_(model.linear.weight)
            nn.init.zeros_(model.linear.bias)
        if recipe.log_prior_bias and recipe.head_start != "fitted":  # whose fit had that start
            training.initialise_bias(model.linear, shares)
        shown = [_common_share(model)]
        shown += training.fit(model, train, loss, epochs=epochs, watch=_common_share, **options)
        return model.state_dict() | {HISTORY: torch.tensor(shown, dtype=torch.float64)}

    missing = not keeper.has("network", key)
    found = training.shared(lambda: store.tensors(keeper.get("network", key, fitted)), missing, fitted)
    history = found.pop(HISTORY).numpy()
    model.load_state_dict(found)
    checkpoint.unlink(missing_ok=True)
    return model.eval(), history


def _common_share(model: nn.Module) -> float:
    # `cam.common_share`, without the import: no change to a map should have every network trained again
    weight: Tensor = model.linear.weight.detach()  # type: ignore[union-attr, operator]
    return float(weight.mean(0).norm() / weight.square().sum(1).mean().sqrt())


def fitted_head(
    recipe: Recipe, features: Tensor, labels: Tensor, num_classes: int, loss: nn.Module, seed: int
) -> nn.Linear:
    """The recipe's linear layer on frozen features (N, C), by its `head_optimizer` and `head_decay`.

    L-BFGS's decay is chosen with cross-entropy whatever the loss, so that losses are compared at the same
    decay. AdamW, for what is too much for L-BFGS, passes the images ten times at least, with a decay of 0.01;
    with `log_prior_bias` its bias starts at log π.

    >>> digits, labels = recipe("digits", head_decay=0.1), torch.tensor([0, 1])
    >>> fitted_head(digits, torch.eye(2), labels, 2, nn.CrossEntropyLoss(), seed=0)(torch.eye(2)).argmax(1)
    tensor([0, 1])
    """
    known, decay = (features, labels, num_classes), recipe.head_decay
    if decay is None:
        decay = heads.select_decay(*known, seed=seed) if recipe.head_optimizer == "lbfgs" else 0.01
    epochs = max(10, round(recipe.passes / len(labels)))
    how: dict[str, Any] = {"optimizer": recipe.head_optimizer, "epochs": epochs, "seed": seed}
    if recipe.log_prior_bias:
        how["log_prior"] = class_prior(labels, num_classes).log().float()
    return heads.fit_head(*known, loss, weight_decay=decay, **how)


def prepared(images: ImageSet, rows: Sequence[int], recipe: Recipe) -> Tensor:
    """Network input (n, 3, H, W) of chosen images, with the centre crop of the recipe's geometry."""
    return prepare(images.pixels(list(rows)), recipe.geometry)


def visible(images: ImageSet, rows: Sequence[int], recipe: Recipe) -> Tensor:
    """What the network sees of chosen images, as pictures: uint8 (n, 3, H, W)."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((prepared(images, rows, recipe) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
