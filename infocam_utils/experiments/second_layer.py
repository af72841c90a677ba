"""A second look at a middle layer: how surprising its features are at each place, whatever the class.

The last layer says how much a place tells about the label; a layer before it, with a finer map, where
something unexpected is. With a Gaussian fitted to the local features F(u) of training images, without labels,
the self-information of a place is ``−log p(F(u)) = ½ d(u)² + const`` nats, d being the length of the whitened
features (Mahalanobis distance). The product of a map and d was tried against every other map of notebook 04.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import Classifier

SHRINKAGE = 0.01  # of the mean variance, added to every variance


@dataclass(frozen=True)
class SecondLayer:
    """A layer amid a network, and the Gaussian of its local features by mean (C,) and whitening (C, C).

    `position` is that of the layer in ``classifier.features``, which must be a sequence.
    """

    position: int
    mean: Tensor
    whitening: Tensor

    def distance(self, features: Tensor) -> Tensor:
        """Length of the whitened local features (B, C, h, w) → (B, h, w).

        >>> layer = SecondLayer(0, torch.zeros(2), torch.eye(2) / 2)
        >>> layer.distance(torch.tensor([6.0, 8.0]).view(1, 2, 1, 1))
        tensor([[[5.]]])
        """
        centred = features - self.mean.to(features)[:, None, None]
        return torch.einsum("dc,bchw->bdhw", self.whitening.to(features), centred).norm(dim=1)


def position_of(model: Classifier, side: int) -> int | None:
    """The last layer whose map has at least twice the resolution of the last one; None where there is none.

    Two cells of it fall on one of the last map (15 on 8, 14 on 7). Images have `side` pixels.

    >>> from infocam_utils.classifiers.backbones import classifier
    >>> position_of(classifier("mobilenet_v2", 5), 224)
    13
    """
    if not isinstance(model.features, nn.Sequential):
        return None
    weight = model.linear.weight
    x, sides = weight.new_zeros(1, 3, side, side), []
    for layer in model.features:
        x = layer(x)
        sides.append(x.shape[-1] if x.ndim == 4 else 0)
    finer = [i for i, found in enumerate(sides) if sides[-1] > 1 and found >= 2 * sides[-1] - 1]
    return finer[-1] if finer else None


def forward_both(model: Classifier, position: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """The features of the layer at `position` and of the last one, (B, C, h, w) each, in one pass."""
    x = middle = images
    layers: Iterable[nn.Module] = model.features  # type: ignore[assignment]
    for i, layer in enumerate(layers):
        x = layer(x)
        middle = x if i == position else middle
    return middle, x


def fit(position: int, batches: Iterable[Tensor]) -> SecondLayer:
    """The Gaussian of all places of batches of features (B, C, h, w), by moments in float64.

    The covariance is shrunk: `SHRINKAGE` of its mean diagonal is added to the diagonal. Raises ValueError
    without a place, for features that are not finite, and for features that are the same everywhere.

    >>> layer = fit(3, [torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)])
    >>> round(float(layer.whitening), 4), float(layer.mean)  # 1 / √1.01
    (0.995, 0.0)
    """
    total, products, count = torch.zeros(()), torch.zeros(()), 0
    for features in batches:
        places = features.double().transpose(0, 1).flatten(1).cpu()  # (C, B·h·w)
        total, products = total + places.sum(1), products + places @ places.T
        count += places.shape[1]
    if not count or not bool(torch.isfinite(products).all()):
        raise ValueError(f"the Gaussian needs finite features of at least one place, had {count} places")
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    covariance += SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(mean)).double()
    if not bool(covariance.diagonal().gt(0).all()):
        raise ValueError(f"all {count} places have the same features; a Gaussian needs more than one")
    factor = torch.linalg.cholesky(covariance)
    whitening = torch.linalg.solve_triangular(factor, torch.eye(len(mean)).double(), upper=False)
    return SecondLayer(position, mean.float(), whitening.float())


def product(maps: Tensor, distance: Tensor) -> Tensor:
    """A map (B, h, w), enlarged, times the distance (B, H, W) in its 3×3 mean, each scaled to [0, 1].

    >>> product(torch.tensor([[[0.0, 4.0]]]), torch.tensor([[[1.0, 1.0], [1.0, 3.0]]])).shape
    torch.Size([1, 2, 2])
    """
    fine = F.interpolate(maps[:, None], size=distance.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    smooth = F.avg_pool2d(distance[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
    return _unit(fine) * _unit(smooth)


def _unit(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
