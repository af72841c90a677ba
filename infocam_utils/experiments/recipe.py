"""How a data set becomes a classifier: the protocol, and networks that are trained once.

Networks are cached under a key of everything that can change them (images, settings, seed, code), so
notebooks 03 and 04 share them and a second run takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from infocam_utils import information
from infocam_utils.classifiers import adapt as pooled
from infocam_utils.classifiers import backbones as models
from infocam_utils.classifiers import heads, training
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.data import images
from infocam_utils.data.images import IMAGENET_MEAN, IMAGENET_STD, Geometry, ImageSet, prepare
from infocam_utils.data.splits import stratified_split
from infocam_utils.information import PCSoftmaxLoss, class_prior
from infocam_utils.data import store as records

Kind = Literal["softmax", "pc"]
MNIST_CNN = "paper_mnist_cnn"


@dataclass(frozen=True)
class Protocol:
    """How a classifier is made for a data set.

    Attributes
    ----------
    backbone, weights, stride : see :func:`infocam_utils.models.classifier`
    size : side of the decoded images, in pixels; geometry : from there to the network's input
    frozen : only a linear head is trained, on features computed once (the paper's CUB protocol)
    passes : training images seen, epochs times images
    batch_size, lr, weight_decay, optimizer, schedule : see :func:`infocam_utils.training.fit`
    head_lr : multiple of `lr` for the linear layer, new on a pretrained network
    adl : with attention-based dropout at the paper's positions
    head_optimizer, head_decay : of a frozen protocol's head; None chooses the decay by `select_decay`
    """

    backbone: str
    weights: str | None
    stride: int | None
    size: int
    geometry: Geometry
    frozen: bool
    passes: int
    batch_size: int = 64
    lr: float = 1e-2
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["onecycle", "constant", "step"] = "onecycle"
    head_lr: float = 1.0
    adl: bool = False
    head_optimizer: Literal["adamw", "lbfgs"] = "lbfgs"
    head_decay: float | None = None

    @property
    def label(self) -> str:
        """A line for tables and keys."""
        stride = f", stride {self.stride}" if self.stride else ""
        adl = " with ADL" if self.adl else ""
        return f"{self.backbone}{adl}{stride}, {'frozen, linear head' if self.frozen else 'trained'}"


def protocol(
    dataset: str,
    backbone: str | None = None,
    weights: str | Path | None = None,
    *,
    stride: int | None = None,
    frozen: bool | None = None,
    passes: int | None = None,
    adl: bool = False,
) -> Protocol:
    """The default protocol of a data set, with what the caller wants otherwise.

    Drawn birds and digits train a small residual network from scratch, MNIST the paper's CNN for its 8
    epochs (its momentum of 0.5 at rate 0.01 is 0.9 at 0.002 here). Photographs take a pretrained network at
    224 pixels, by default MobileNetV2 with its convolutions frozen; ``frozen=False`` fine-tunes all of it by
    the paper's recipe for localization (SGD, a tenth after each third, the head at ten times the rate; give
    `passes` for its 200 epochs). CUB photographs (``cub200`` or a folder) are squashed to 256 pixels and
    cropped to 224, as in the paper; the 64 pixels of Tiny-ImageNet (``tiny-imagenet``, or a folder whose name
    holds that) are enlarged to 224.

    >>> protocol("minibirds").label, protocol("cub200", weights="imagenet").geometry.crop
    ('small_resnet, trained', 224)
    """
    small = {"digits": (16, Geometry(flip=False), 20_000), "minibirds": (64, Geometry(), 36_000)}
    made: Protocol
    if dataset in small:
        size, geometry, budget = small[dataset]
        made = Protocol(backbone or "small_resnet", None, stride, size, geometry, bool(frozen), budget)
    elif dataset == "mnist":
        made = Protocol(
            backbone or MNIST_CNN, None, stride, 28, Geometry(flip=False), bool(frozen), 8 * 16_500, lr=0.002,
            weight_decay=0.0, optimizer="sgd", schedule="constant",
        )  # fmt: skip
    else:
        tiny = "tiny-imagenet" in Path(dataset).name
        size, geometry = (64, Geometry(224, 224)) if tiny else (256, Geometry(256, 224))
        made = Protocol(
            backbone or "mobilenet_v2", "imagenet", stride, size, geometry, frozen is None or frozen, 60_000,
            lr=1e-3, weight_decay=1e-4, optimizer="sgd", schedule="step", head_lr=10.0, adl=adl,
        )  # fmt: skip
    if weights is not None:
        beside = records.data_root() / weights  # a file may also be named as it lies beside the data sets
        known = str(weights) == "imagenet" or Path(weights).exists() or not beside.is_file()
        made = replace(made, weights=str(weights if known else beside))
    return made if passes is None else replace(made, passes=passes)


def untrained(how: Protocol, num_classes: int, seed: int) -> Classifier:
    """The protocol's classifier before training; its random weights come from the seed alone.

    The paper's MNIST network has no pooling before its last linear layer: all before that layer counts as
    features of one cell.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if how.backbone == MNIST_CNN:
            *body, linear = models.paper_mnist_cnn(num_classes, in_channels=3, image_size=how.size)
            assert isinstance(linear, nn.Linear)
            return Classifier(nn.Sequential(*body, nn.Unflatten(1, (-1, 1, 1))), linear, MNIST_CNN)
        return models.classifier(how.backbone, num_classes, how.weights, stride=how.stride, adl=how.adl)


def loss_of(kind: Kind, prior: Tensor) -> nn.Module:
    """Cross-entropy of the plain softmax, or of the probability-corrected one.

    >>> type(loss_of("pc", torch.tensor([0.5, 0.5]))).__name__
    'PCSoftmaxLoss'
    """
    if kind not in ("softmax", "pc"):
        raise ValueError(f"kind must be 'softmax' or 'pc', was {kind!r}")
    return PCSoftmaxLoss(prior) if kind == "pc" else nn.CrossEntropyLoss()


def network(
    train: ImageSet,
    how: Protocol,
    kind: Kind = "softmax",
    seed: int = 0,
    *,
    log_prior_bias: bool = False,
    cache_dir: Path | None = None,
) -> Classifier:
    """The protocol's network trained on `train`, from the cache when it was trained before.

    `log_prior_bias` starts the head at log π, so that a plain softmax need not learn the class shares.
    An interrupted training resumes from its last epoch.
    """
    model = untrained(how, train.num_classes, seed)
    if how.frozen:
        return model
    prior = class_prior(train.labels, train.num_classes)
    if log_prior_bias:
        training.initialise_bias(model.linear, prior)
    epochs = max(1, round(how.passes / len(train)))
    key = {
        "images": train.key, "protocol": asdict(how), "kind": kind, "seed": seed, "bias": log_prior_bias,
        "weights": models.weights_digest(how.weights), "classes": train.num_classes,
        "code": records.fingerprint(training, models, pooled, images, information),
    }  # fmt: skip
    folder = cache_dir if cache_dir is not None else records.data_root() / "cache"

    def fitted() -> dict[str, Tensor]:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        checkpoint = folder / f"checkpoint-{name}.pt"
        training.fit(
            model, train, loss_of(kind, prior), geometry=how.geometry, epochs=epochs, lr=how.lr,
            batch_size=how.batch_size, weight_decay=how.weight_decay, optimizer=how.optimizer,
            schedule=how.schedule, lr_factors={"linear": how.head_lr}, seed=seed, checkpoint=checkpoint,
        )  # fmt: skip
        checkpoint.unlink(missing_ok=True)
        return dict(model.state_dict())

    model.load_state_dict(records.cached("network", key, fitted, folder))
    return model.eval()


def prepared(images: ImageSet, rows: Sequence[int], how: Protocol) -> Tensor:
    """Network input (n, 3, H, W) of chosen images, with the centre crop of the protocol's geometry."""
    return prepare(images.pixels(list(rows)), how.geometry)


def visible(images: ImageSet, rows: Sequence[int], how: Protocol) -> Tensor:
    """What the network sees of chosen images, as pictures: uint8 (n, 3, H, W).

    >>> import numpy as np
    >>> nine, zero = np.full((1, 3, 64, 64), 9, np.uint8), torch.tensor([0])
    >>> one = ImageSet(nine, zero, None, 1, ["x"], zero, "example")
    >>> visible(one, [0], protocol("minibirds")).unique().tolist()
    [9]
    """
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((prepared(images, rows, how) * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)


def select_decay(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int = 0,
    split: tuple[Tensor, Tensor] | None = None,
    candidates: Sequence[float] = DECAYS,
) -> float:
    """The weight decay of a convergent linear head that predicts held-out *training* images best.

    Heads are fitted with plain cross-entropy on a share of each class's images (`split`, or 80 % drawn from
    the seed) and compared by their cross-entropy on the rest, so no test image has a say.
    """
    rows, unseen = stratified_split(labels, 0.2, seed) if split is None else split
    losses = []
    for decay in candidates:
        head = heads.fit_head(
            features[rows], labels[rows], num_classes, weight_decay=decay, optimizer="lbfgs", tolerance=1e-3
        )
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(head(features[unseen]), labels[unseen])))
    return candidates[losses.index(min(losses))]
