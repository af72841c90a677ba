"""Class activation maps and infoCAM: where in an image the evidence for a class, against another, lies.

With features `F`, class weights `W` and global average pooling, the difference of two logits is that of two
pointwise mutual informations, `PMI(x, y) − PMI(x, y') = f_y − f_y'`, and, up to a difference of biases, the
spatial mean of `(W_y − W_y') · F`. That map is infoCAM; summed over a region around every cell, infoCAM+.

One vector added to every row of `W` moves all logits of an image alike: the softmax does not change, nor does
infoCAM, but CAM, `W_y · F`, does. That common vector is the gauge. Training decides how large it is, the task
does not: under weight decay the rows sum to zero. `zero_sum` takes it away and `with_common_vector` adds one.

Shapes: features (B, C, h, w), what enters the global average pooling; weight (K, C), of the linear layer;
labels (B,) integers, the class y of each image; logits (B, K). What does not fit is a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infocam_utils.information import check_choice, check_labels

Rival = Literal["others", "least_likely", "runner_up"]
Against = Rival | int | Sequence[int] | Tensor | None
Padding = Literal["same", "full"]


def class_activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """The map of every class, `einsum('kc,bchw->bkhw', weight, features)` (Zhou et al. 2016): (B, K, h, w).

    Signed. The spatial mean plus the bias is the logit. `info_cam` needs no map of every class.

    >>> class_activation_maps(torch.ones(1, 2, 1, 3), torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist()
    [[[[1.0, 1.0, 1.0]], [[2.0, 2.0, 2.0]]]]
    """
    _check(features, weight)
    dtype = torch.promote_types(features.dtype, weight.dtype)
    # Not einsum, which copies the features to bring C to the front; here the result is all that is allocated.
    flat = features.to(dtype).flatten(2)  # (B, C, h·w)
    maps = torch.bmm(weight.to(dtype).expand(len(flat), -1, -1), flat)  # (B, K, h·w)
    return maps.unflatten(2, features.shape[2:])


def contrast_weights(
    weight: Tensor, labels: Tensor, against: Against, logits: Tensor | None = None
) -> Tensor:
    """The weight vector whose map is drawn for each image, (B, C): `W_y`, or `W_y` minus that of the rival.

    The rival is None for CAM; `others`, the mean of the other K − 1 rows; `least_likely` or `runner_up`, the
    row of the class with the smallest or largest logit *except y*: were y its own rival, the map would be
    zero. These two need the logits. A class of one's choice is its number, several a list of which the mean
    row is taken, and a tensor (B,) or (B, m) holds each image's own. In place of the weight, the biases (K,
    1) or transposed logits (K, N) give their contrast. Stacked to (V, B, C), vectors of several heads and
    rivals read the features once for all their maps, `einsum('vbc,bchw->bvhw', vectors, features)`.

    >>> weight, logits = torch.tensor([[6.0], [1.0], [3.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    >>> [contrast_weights(weight, torch.tensor([0]), a, logits).item()
    ...  for a in (None, "others", "least_likely", "runner_up", 2, [1, 2])]
    [6.0, 4.0, 3.0, 5.0, 3.0, 4.0]
    """
    classes = len(weight)
    check_labels(labels, classes)
    if logits is not None and logits.shape != (len(labels), classes):
        raise ValueError(f"logits must be ({len(labels)}, {classes}), were {tuple(logits.shape)}")
    if logits is not None and not logits.isfinite().all():
        bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
        raise ValueError(f"logits of images {bad[:5]} of the batch are not finite; check input and weights")
    labels = labels.to(weight.device, torch.int64)
    own = weight[labels]  # (B, C)
    if against is None:
        return own
    rivals = rival_classes(labels, classes, against, logits)
    if rivals is None:
        return own - (weight.sum(0) - own) / (classes - 1)
    return own - weight[rivals.to(weight.device)].mean(1)


def rival_classes(
    labels: Tensor, classes: int, against: Against, logits: Tensor | None = None
) -> Tensor | None:
    """The classes (B, m) that each image's label is held against, as `contrast_weights` takes them.

    None for CAM, which has none, and for "others", which are all.

    >>> rival_classes(torch.tensor([0, 1]), 3, "runner_up", torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]))
    tensor([[2],
            [0]])
    """
    if against is None:
        return None
    if not isinstance(against, str):
        return _chosen(against, len(labels), classes)
    check_choice("against", against, get_args(Rival))
    if classes < 2:
        raise ValueError(f"a contrast needs at least 2 classes, got {classes}; pass against=None for CAM")
    if against == "others":
        return None
    if logits is None:
        raise ValueError(f"against={against!r} depends on the image; pass logits=model(images)")
    sign = 1 if against == "runner_up" else -1
    others = (sign * logits).scatter(1, labels.to(logits.device)[:, None], -torch.inf)  # never y itself
    return others.argmax(1, keepdim=True)


def region_sum(maps: Tensor, region: int, padding: Padding = "same") -> Tensor:
    """Sum (B, h, w) maps over the `region` x `region` cells around each cell, zero outside: infoCAM's "+".

    `full` pads by `region` − 1 as the official code does (region 4 on CUB, 3 on Tiny-ImageNet) and the map
    grows to h + region − 1; stretched over the image, what it shows shrinks by h / (h + region − 1).
    `same` keeps the size; an even region reaches one cell further right and down than left and up.

    >>> region_sum(torch.tensor([[[1.0, 2.0, 3.0]]]), 2, "full")
    tensor([[[1., 3., 5., 3.],
             [1., 3., 5., 3.]]])
    """
    check_choice("padding", padding, get_args(Padding))
    if region < 1:
        raise ValueError(f"region must be at least 1 cell, was {region}; 1 leaves the map as it is")
    if region == 1:
        return maps
    before, after = (region - 1, region - 1) if padding == "full" else ((region - 1) // 2, region // 2)
    padded = F.pad(maps, (before, after, before, after))
    return F.avg_pool2d(padded[:, None], region, stride=1, divisor_override=1)[:, 0]


def info_cam(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    against: Against = "others",
    logits: Tensor | None = None,
    region: int = 1,
    padding: Padding = "same",
) -> Tensor:
    """infoCAM: the map of class y minus that of its rival, summed over a region if `region` > 1 (infoCAM+).

    `against` and `logits` as in `contrast_weights`, `region` and `padding` as in `region_sum`. The result is
    (B, h, w), or larger with `full` padding; signed, in nats of PMI difference. Without region sum, its
    spatial mean plus the difference of biases is `f_y − f_rival` (completeness). Where the rows of the weight
    sum to zero, as weight decay makes them, `others` is K / (K − 1) times CAM.

    >>> features, weight = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.eye(2)
    >>> info_cam(features, weight, torch.tensor([0]))
    tensor([[[ 1., -1.]]])
    """
    _check(features, weight)
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must be ({len(features)},), one per image, were {tuple(labels.shape)}")
    dtype = torch.promote_types(features.dtype, weight.dtype)
    vectors = contrast_weights(weight.to(dtype), labels, against, logits)  # (B, C)
    maps = torch.einsum("bc,bchw->bhw", vectors.to(features.device), features.to(dtype))
    return region_sum(maps, region, padding)


def feature_norm_maps(features: Tensor) -> Tensor:
    """Euclidean norm of the features at each cell, a map that knows no class: (B, h, w).

    >>> feature_norm_maps(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    tensor([[[5.]]])
    """
    _check(features)
    return features.norm(dim=1)


def spread_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Spread over the classes of the logits at each place, ``sqrt(Var_k(w_k · F(u)))``: (B, h, w), in nats.

    How much place u says about the label, whatever the label is: to second order
    ``KL(softmax(g(u)) ‖ π) ≈ ½ Var_π(g(u))``. Like infoCAM it does not know the gauge, and it needs neither
    label nor logits.

    >>> spread_maps(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), torch.tensor([[1.0, 5.0], [-1.0, 5.0]]))
    tensor([[[2.]]])
    """
    return class_activation_maps(features, weight - weight.mean(0)).square().mean(1).sqrt()


def common_share(weight: Tensor) -> float:
    """Norm of the mean row over the root mean square norm of the rows: how much of the weight is gauge.

    0 where the rows sum to zero, also where there is nothing but zeros; 1 where all are the same.

    >>> common_share(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), common_share(torch.ones(3, 2))
    (0.0, 1.0)
    """
    return float(weight.mean(0).norm() / _row_norm(weight).clamp_min(torch.finfo(weight.dtype).tiny))


def zero_sum(head: nn.Linear) -> nn.Linear:
    """The same classifier in the gauge where the rows sum to zero: their mean is taken from each of them.

    >>> head = zero_sum(nn.Linear(3, 4))
    >>> bool(head.weight.sum(0).abs().max() < 1e-6)
    True
    """
    return _moved(head, -head.weight.detach().mean(0))


def with_common_vector(head: nn.Linear, scale: float, seed: int = 0) -> nn.Linear:
    """The same classifier with one random vector added to every row of its weights.

    Its length is `scale` times the root mean square norm of the rows.

    >>> head = with_common_vector(zero_sum(nn.Linear(3, 4)), scale=2.0)
    >>> round(common_share(head.weight), 4)  # 2 / √(1 + 2²)
    0.8944
    """
    weight = head.weight.detach()
    vector = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(seed)).to(weight)
    return _moved(head, vector * (scale * _row_norm(weight) / vector.norm()))


def _chosen(against: int | Sequence[int] | Tensor, images: int, classes: int) -> Tensor:
    """Classes (B, m) that each image is held against."""
    rows = torch.as_tensor(against)
    check_labels(rows.flatten(), classes)
    if isinstance(against, Tensor) and rows.ndim in (1, 2) and len(rows) == images:
        return rows.view(images, -1).long()
    if isinstance(against, Tensor) and rows.ndim:
        raise ValueError(f"against must be ({images},) or ({images}, m), was {tuple(rows.shape)}")
    return rows.long().view(1, -1).expand(images, -1)


def _row_norm(weight: Tensor) -> Tensor:
    """Root mean square norm of the rows."""
    return weight.square().sum(1).mean().sqrt()


def _moved(head: nn.Linear, vector: Tensor) -> nn.Linear:
    """A copy of the head with a vector (C,) added to every row of its weights, and without gradients."""
    moved = deepcopy(head).requires_grad_(False)
    moved.weight += vector
    return moved


def _check(features: Tensor, weight: Tensor | None = None) -> None:
    if features.ndim != 4 or features.numel() == 0:
        shape = tuple(features.shape)
        raise ValueError(f"features must be (B, C, h, w), not empty and not pooled, were {shape}")
    if weight is not None and (weight.ndim != 2 or weight.shape[1] != features.shape[1]):
        shape = tuple(weight.shape)
        raise ValueError(f"weight must be (K, {features.shape[1]}) for these features, was {shape}")
