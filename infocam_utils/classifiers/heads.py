"""Linear heads on frozen features, the paper's protocol on photographs: convergent L-BFGS or minibatch AdamW.

The two differ in more than speed. Summed over the classes, the gradients of cross-entropy and of PC-softmax
are zero; L-BFGS starts at 0 and only adds up gradients and multiples of the weights, so its class weights sum
to zero. AdamW divides each gradient by its own size, and starts at random: its class weights have a common
vector, on which no prediction depends and every CAM does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infocam_utils.data.splits import stratified_split
from infocam_utils.information import check_choice

DECAYS = (1e-5, 1e-4, 1e-3, 1e-2)


def fit_head(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    loss: nn.Module | None = None,
    *,
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "lbfgs"] = "adamw",
    epochs: int = 30,
    lr: float = 1e-3,
    batch_size: int = 256,
    seed: int = 0,
    tolerance: float = 1e-6,
    decay_bias: bool = False,
    log_prior: Tensor | None = None,
) -> nn.Linear:
    r"""The linear layer that minimises the mean loss on `features` as they are, not standardised.

    "lbfgs" minimises :math:`\frac1N\sum_n \ell(W x_n + b, y_n) + \frac\lambda2 \|W\|^2` over all data at
    once, in float64, from 0, until no entry of the gradient exceeds `tolerance`; `seed`, `epochs`, `lr` and
    `batch_size` play no part in it. "adamw" takes minibatch steps with a learning rate that falls as a cosine
    to 0 and with decoupled decay of the weights. The bias is not decayed, unless `decay_bias`.

    Parameters
    ----------
    features : (N, C) finite
    labels : (N,) in 0..num_classes-1
    loss : from logits (B, K) and labels (B,) to their mean; cross-entropy unless given
    weight_decay : λ
    decay_bias : the penalty takes in the bias: a softmax then cannot learn the class shares for nothing
    log_prior : (K,) where AdamW's bias starts, instead of 0

    Raises
    ------
    ValueError : shapes, labels, features or settings that cannot be, or L-BFGS does not converge
    FloatingPointError : AdamW's loss is not finite

    Examples
    --------
    >>> x = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    >>> head = fit_head(x, torch.tensor([0, 1]), 2, weight_decay=0.1, optimizer="lbfgs")
    >>> head.weight.sum(0).abs().max().item() < 1e-6, head(x).argmax(1).tolist()
    (True, [0, 1])
    """
    check_choice("optimizer", optimizer, ("adamw", "lbfgs"))
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(features) == 0:
        raise ValueError(
            f"features must be (N, C) and labels (N,) with N at least 1, were {tuple(features.shape)} and "
            f"{tuple(labels.shape)}; pool maps over their positions first"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite; find the images whose features are not, and the reason")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, were {least}..{most}")
    if epochs < 1 or batch_size < 1 or not 0 < lr < math.inf or not 0 <= weight_decay < math.inf:
        raise ValueError(
            "epochs and batch_size must be at least 1, lr positive and weight_decay not negative; were "
            f"{epochs}, {batch_size}, {lr} and {weight_decay}"
        )
    loss = nn.CrossEntropyLoss() if loss is None else loss
    head = nn.utils.skip_init(nn.Linear, features.shape[1], num_classes).to(features).eval()
    if optimizer == "lbfgs":
        _lbfgs(head, features, labels, loss, weight_decay, tolerance, decay_bias)
        return head

    generator, bound = torch.Generator().manual_seed(seed), head.in_features**-0.5  # nn.Linear's own range
    start = torch.empty(head.weight.shape).uniform_(-bound, bound, generator=generator)
    bias = torch.zeros(head.out_features) if log_prior is None else log_prior
    head.load_state_dict({"weight": start, "bias": bias})
    of_bias = {"params": [head.bias], "weight_decay": weight_decay if decay_bias else 0.0}
    groups: list[dict[str, Any]] = [{"params": [head.weight]}, of_bias]
    adam = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    steps = math.ceil(len(features) / batch_size)
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=generator)
        for step, batch in enumerate(order.tensor_split(steps)):
            rate = lr * 0.5 * (1 + math.cos(math.pi * (epoch + step / steps) / epochs))
            for group in adam.param_groups:
                group["lr"] = rate
            value = loss(head(features[batch]), labels[batch])
            if not math.isfinite(number := value.item()):
                raise FloatingPointError(
                    f"the loss became {number} in epoch {epoch + 1}, step {step + 1}, at a learning rate of "
                    f"{rate:.3g}; lower lr (it was {lr:g})"
                )
            adam.zero_grad()
            value.backward()
            adam.step()
    return head


def select_decay(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    seed: int = 0,
    split: tuple[Tensor, Tensor] | None = None,
    candidates: Sequence[float] = DECAYS,
) -> float:
    """The weight decay of an L-BFGS head that predicts held-out *training* images best.

    Heads are fitted with plain cross-entropy on a share of each class's images (`split`, or 80 % drawn from
    the seed) and compared by their cross-entropy on the rest, so no test image has a say.

    Parameters
    ----------
    features, labels, num_classes : as in `fit_head`
    split : rows to fit on and rows to compare on
    candidates : decays to choose from; of equals the first

    Examples
    --------
    >>> labels = torch.arange(60) % 3
    >>> select_decay(torch.eye(3)[labels], labels, 3)
    1e-05
    """
    rows, unseen = stratified_split(labels, 0.2, seed) if split is None else split
    seen = features[rows], labels[rows], num_classes
    losses = []
    for decay in candidates:
        head = fit_head(*seen, weight_decay=decay, optimizer="lbfgs", tolerance=1e-3)
        with torch.no_grad():
            losses.append(float(cross_entropy(head(features[unseen]), labels[unseen])))
    return candidates[losses.index(min(losses))]


def _lbfgs(
    head: nn.Linear,
    features: Tensor,
    labels: Tensor,
    loss: nn.Module,
    weight_decay: float,
    tolerance: float,
    decay_bias: bool,
) -> None:
    x, y, of_bias = features.detach().cpu().double(), labels.cpu(), weight_decay if decay_bias else 0.0
    sizes = [head.weight.numel(), head.out_features]  # of the vector in which weight and bias move

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = torch.from_numpy(point).split(sizes)
        weight = weight.view_as(head.weight)
        logits = torch.addmm(bias, x, weight.T).requires_grad_()  # (N, K)
        value = loss(logits, y)
        (slope,) = torch.autograd.grad(value, logits)
        gradient = [(slope.T @ x + weight_decay * weight).flatten(), slope.sum(0) + of_bias * bias]
        penalty = 0.5 * weight_decay * weight.square().sum() + 0.5 * of_bias * bias.square().sum()
        return value.item() + penalty.item(), torch.cat(gradient).numpy()

    options = {"maxiter": 5000, "maxfun": 10_000, "maxcor": 20, "ftol": 0.0, "gtol": tolerance}
    found = minimize(objective, np.zeros(sum(sizes)), jac=True, method="L-BFGS-B", options=options)
    largest = float(np.abs(found.jac).max())
    if not largest <= tolerance:
        raise ValueError(
            f"L-BFGS stopped after {found.nit} iterations at a largest gradient of {largest:.1e}, above "
            f"tolerance={tolerance:.1e}; raise weight_decay or tolerance, or scale the features to about 1"
        )
    weight, bias = torch.from_numpy(found.x).split(sizes)
    head.load_state_dict({"weight": weight.view_as(head.weight), "bias": bias})
