"""How a data set becomes a classifier: the recipe, and networks that are trained once.

A recipe and a seed determine a network. Trained networks are kept in the store under everything that can
change them (recipe, seed, images, weights, code), so experiments share them and a second run takes seconds.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from infocam_utils.classifiers import backbones, training
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.data import sets, store
from infocam_utils.data.images import IMAGENET_MEAN, IMAGENET_STD, Geometry, ImageSet, prepare
from infocam_utils.data.splits import ImbalanceRule, imbalanced_subset
from infocam_utils.information import PCSoftmaxLoss, check_choice, class_prior

Loss = Literal["softmax", "pc"]
DECAYS = ("weight_decay", "head_decay")  # which may be 0


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
    log_prior_bias : the head's bias starts at log π, so that a plain softmax need not learn the shares
    frozen : only a linear head is trained, on features computed once (the paper's way with CUB)
    passes : training images seen, epochs times images
    batch_size, lr, weight_decay, optimizer, schedule, precision, devices : see
        :func:`infocam_utils.classifiers.training.fit`
    head_lr : multiple of `lr` for the linear layer, new on a pretrained network
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
    loss: Loss
    log_prior_bias: bool
    frozen: bool
    passes: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    optimizer: Literal["adamw", "sgd"]
    schedule: Literal["onecycle", "constant", "step"]
    head_optimizer: Literal["adamw", "lbfgs"]
    head_decay: float | None
    precision: str
    devices: int

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, training.PRECISIONS)
        for name, kind in get_type_hints(Recipe).items():
            kinds, value = get_args(kind) or (kind,), getattr(self, name)
            if get_origin(kind) is Literal:
                check_choice(name, value, kinds)
                continue
            if float in kinds and type(value) is int:  # so that equal recipes are written alike
                object.__setattr__(self, name, value := float(value))
            if type(value) not in kinds:
                expected = " or ".join("None" if k is NoneType else k.__name__ for k in kinds)
                raise TypeError(f"{name} must be {expected}, got {value!r}")
            if type(value) in (int, float) and not (0 < value < math.inf or (value == 0 and name in DECAYS)):
                bound = "finite and not negative" if name in DECAYS else "finite and above 0"
                raise ValueError(f"{name} must be {bound}, got {value}")
        Geometry(self.resize, self.crop, self.flip).sizes(self.size)  # refuses a crop that does not fit

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
    dataset : a name of :data:`infocam_utils.data.sets.SETS`, a folder, or a folder's name under the data
        directory; a relative path is looked up from here, now.
    data_dir : where data sets lie, see :func:`infocam_utils.data.store.data_root`
    changes : fields of :class:`Recipe`; None takes the default. `weights` is "imagenet", "none", or a file,
        which may also be named as it lies in the data directory.

    Raises
    ------
    TypeError
        For an unknown field, with near matches.
    ValueError, FileNotFoundError
        For a value that cannot be, or a data set or file that is not there.

    >>> recipe("digits", passes=500).passes
    500
    """
    names = [field.name for field in fields(Recipe)]
    for unknown in [name for name in changes if name not in names]:
        near = difflib.get_close_matches(unknown, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        raise TypeError(f"a recipe has no field {unknown!r}; {hint}")
    row = sets.describe(dataset, data_dir)
    given = {name: value for name, value in changes.items() if value is not None}
    made: dict[str, Any] = {"dataset": _placed(dataset, data_dir), **row.recipe, **given}
    weights = made.get("weights")
    made["weights"] = None if weights in (None, "none") else _weights(weights, data_dir)
    return Recipe(**made)


def _placed(dataset: str | Path, data_dir: str | Path | None) -> str:
    """A name in the data directory as it is, a path from here as an absolute one."""
    folder = sets.locate(dataset, data_dir)
    return str(Path(dataset) if folder == store.data_root(data_dir) / dataset else folder)


def _weights(weights: str | Path, data_dir: str | Path | None) -> str:
    if weights == "imagenet":
        return "imagenet"
    for path in (Path(weights).expanduser(), store.data_root(data_dir) / weights):
        if path.is_file():
            return str(path.resolve())
    raise FileNotFoundError(
        f"no weights file {weights}, neither from {Path.cwd()} nor in {store.data_root(data_dir)}; pass "
        "'imagenet', 'none' or the path of a state dict"
    )


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse no seed, and a seed given twice: one run counted twice makes an interval too short.

    >>> check_seeds([0, 0])
    Traceback (most recent call last):
    ValueError: seeds must be distinct, since equal seeds give equal runs, got [0, 0]; drop the repeated ones
    """
    if len(seeds) == 0:
        raise ValueError("seeds must hold at least one seed, got none; give such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            f"seeds must be distinct, since equal seeds give equal runs, got {list(seeds)}; "
            "drop the repeated ones"
        )


def training_rows(
    recipe: Recipe, images: ImageSet, seed: int | None, data_dir: str | Path | None = None
) -> Tensor:
    """Which of a data set's training `images` the recipe trains on, ascending.

    With `few`, the first of each class in an order drawn from the seed; seed=None walks the list in its own
    order, which gives the paper's list.
    """
    if recipe.few is None:
        if recipe.many is not None:
            raise ValueError(
                f"many={recipe.many} needs few, the images of a rare class; give both or neither"
            )
        return torch.arange(len(images))
    rule = sets.describe(recipe.dataset, data_dir).train_rule(images.labels)
    return kept_rows(images, replace(rule, few=recipe.few, many=recipe.many), seed)


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
    return (
        images
        if recipe.few is None and recipe.many is None
        else images.subset(training_rows(recipe, images, seed, data_dir))
    )


def _all_images(recipe: Recipe, data_dir: str | Path | None) -> ImageSet:
    return sets.load_images(recipe.dataset, "train", data_dir, size=recipe.size, limit=recipe.train_limit)


def prior(recipe: Recipe, seed: int, data_dir: str | Path | None = None) -> Tensor:
    """(K,) class shares of the images that a recipe and a seed train on."""
    images = _all_images(recipe, data_dir)
    rows = training_rows(recipe, images, seed, data_dir)
    return class_prior(images.labels[rows], images.num_classes)


def untrained(recipe: Recipe, num_classes: int, seed: int) -> Classifier:
    """The recipe's classifier before training; its random weights come from the seed alone."""
    mapless = backbones.STRIDES.get(recipe.backbone) == ()  # its layers depend on the image's size
    side = recipe.geometry.sizes(recipe.size)[1] if mapless else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return backbones.classifier(
            recipe.backbone,
            num_classes,
            recipe.weights,
            stride=recipe.stride,
            image_size=side,
            adl=recipe.adl,
        )


def loss_of(kind: str, prior: Tensor) -> nn.Module:
    """Cross-entropy of the plain softmax, or of the probability-corrected one.

    >>> type(loss_of("pc", torch.tensor([0.5, 0.5]))).__name__
    'PCSoftmaxLoss'
    """
    check_choice("loss", kind, get_args(Loss))
    return PCSoftmaxLoss(prior) if kind == "pc" else nn.CrossEntropyLoss()


def network(recipe: Recipe, seed: int, data_dir: str | Path | None = None) -> Classifier:
    """The network that a recipe and a seed determine, from the store when it was trained before.

    With ``frozen`` it is the untrained one. An interrupted training goes on from its last epoch.
    """
    if recipe.frozen:
        return untrained(recipe, _all_images(recipe, data_dir).num_classes, seed)
    train = training_set(recipe, seed, data_dir)
    model = untrained(recipe, train.num_classes, seed)
    shares = class_prior(train.labels, train.num_classes)
    if recipe.log_prior_bias:
        training.initialise_bias(model.linear, shares)
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

    def fitted(_: store.Draft) -> Mapping[str, Tensor]:
        training.fit(
            model,
            train,
            loss_of(recipe.loss, shares),
            geometry=recipe.geometry,
            epochs=max(1, round(recipe.passes / len(train))),
            lr=recipe.lr,
            batch_size=recipe.batch_size,
            weight_decay=recipe.weight_decay,
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            lr_factors={"linear": recipe.head_lr},
            seed=seed,
            devices=recipe.devices,
            precision=recipe.precision,
            checkpoint=checkpoint,
        )
        return model.state_dict()

    model.load_state_dict(store.tensors(keeper.get("network", key, fitted)))
    checkpoint.unlink(missing_ok=True)
    return model.eval()


def prepared(images: ImageSet, rows: Sequence[int], recipe: Recipe) -> Tensor:
    """Network input (n, 3, H, W) of chosen images, with the centre crop of the recipe's geometry."""
    return prepare(images.pixels(list(rows)), recipe.geometry)


def visible(images: ImageSet, rows: Sequence[int], recipe: Recipe) -> Tensor:
    """What the network sees of chosen images, as pictures: uint8 (n, 3, H, W).

    >>> import numpy as np
    >>> nine, zero = np.full((1, 3, 64, 64), 9, np.uint8), torch.tensor([0])
    >>> one = ImageSet(nine, zero, None, 1, ["x"], zero, "example")
    >>> visible(one, [0], recipe("minibirds")).unique().tolist()
    [9]
    """
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((prepared(images, rows, recipe) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
