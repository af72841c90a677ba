"""The form that makes a class activation map exact: features → global average pooling → one linear layer.

With features `F` (B, C, h, w), weight `W` (K, C) and bias `b`, the logit is `f_k = mean_hw(W_k · F) + b_k`,
the spatial mean of its own map. `Classifier` is that form; `adapt` finds it in a model that has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp

_REMEDY = (
    "infoCAM needs features → global average pooling → one nn.Linear; if the model has that, build "
    "Classifier(features, linear) from its parts"
)
# What may stand between the features and the linear layer; whether it really is their mean is then measured.
_POOLING_LAYERS = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
_POOLING_CALLS = {"adaptive_avg_pool2d", "avg_pool2d", "mean", "flatten", "view", "reshape", "squeeze"}


class Classifier(nn.Module):
    """`linear(mean over positions of features(x))`.

    Parameters
    ----------
    features : images (B, 3, H, W) → maps (B, C, h, w)
    linear : the class weights, `nn.Linear(C, K)`
    name : shown in messages
    dropout : share of the pooled features dropped while training

    Examples
    --------
    >>> model = Classifier(nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, 5))
    >>> model(torch.zeros(2, 3, 9, 9)).shape, model.forward_features(torch.zeros(2, 3, 9, 9)).shape
    (torch.Size([2, 5]), torch.Size([2, 8, 4, 4]))
    """

    def __init__(
        self, features: nn.Module, linear: nn.Linear, name: str = "classifier", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(dropout))
        self.linear = linear
        self.name = name

    @property
    def num_classes(self) -> int:
        return self.linear.out_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) → maps (B, C, h, w)."""
        return self.features(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.pool(self.forward_features(x)))  # (B, C, h, w) → (B, C) → (B, K)


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every submodule's own mode back afterwards, also after an exception.

    Examples
    --------
    >>> layer = nn.Dropout()
    >>> with evaluation_mode(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def adapt(model: nn.Module, probe: Tensor | None = None) -> Classifier:
    """View a model that ends in global average pooling and one linear layer as a `Classifier`.

    The model is not copied: both share their layers. Its graph is traced in evaluation mode, cut behind the
    last map of more than one cell, and accepted only if mean and linear layer reproduce the model's pooled
    features and logits on a probe. So torchvision's ResNets, MobileNetV2, DenseNets, EfficientNets, RegNets
    and Swin transformers are. A window that covers the map of the probe may miss cells at other image
    sizes.

    Parameters
    ----------
    model : the classifier; a `Classifier` is returned as it is
    probe : images (B, c, H, W) to check with; None draws noise of 224x224 pixels

    Raises
    ------
    TypeError : not a module
    ValueError : the model cannot be traced, or is not of this form

    Examples
    --------
    >>> stock = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    >>> adapt(stock).linear is stock[3]
    True
    """
    if isinstance(model, Classifier):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, was {type(model).__name__}")
    name, modules = type(model).__name__, dict(model.named_modules())
    with evaluation_mode(model):
        try:
            graph = torch.fx.Tracer().trace(model)
        except Exception as error:  # the model's own code, which may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name} cannot be traced ({reason}); {_REMEDY}") from error
        last = graph.output_node().args[0]
        linear = modules.get(str(last.target)) if isinstance(last, torch.fx.Node) else None
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"{name} does not end in one nn.Linear; {_REMEDY}")
        if probe is None:
            channels = next((m.in_channels for m in modules.values() if isinstance(m, nn.Conv2d)), 3)
            probe = torch.randn(1, channels, 224, 224, generator=torch.Generator().manual_seed(0))
        probe = probe.to(linear.weight)
        pooled: list[Tensor] = []
        watch = linear.register_forward_pre_hook(lambda _, entering: pooled.append(entering[0]))
        try:
            with torch.inference_mode():
                expected, given = model(probe), pooled[-1]
                ShapeProp(torch.fx.GraphModule(model, graph)).propagate(probe)
        except Exception as error:
            found = f"{tuple(probe.shape)} ({type(error).__name__}: {error})"
            remedy = "pass adapt(model, probe=<its images>)"
            raise ValueError(f"{name} fails on images {found}; {remedy}") from error
        finally:
            watch.remove()
        adapted = _cut(model, graph, linear, modules).eval()
        with torch.inference_mode():
            maps = adapted.forward_features(probe)
            if maps.ndim != 4 or maps.shape[1] != linear.in_features or maps[0, 0].numel() == 1:
                sees = f"{name}'s last layer sees {tuple(maps.shape)}"
                raise ValueError(f"{sees}, not the mean of maps; {_REMEDY}")
            means = adapted.pool(maps)
            off = disagreement(means, given) or disagreement(linear(means), expected)
        if off:
            raise ValueError(f"{name}'s logits are not linear in mean maps (off by {off:.1e}); {_REMEDY}")
    for module in set(adapted.modules()) - set(modules.values()):
        module.training = model.training
    return adapted


def disagreement(found: Tensor, expected: Tensor) -> float:
    """How far two results are apart, over the largest expected value; 0 within the root of their precision.

    NaN where one of them is.

    >>> disagreement(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])), disagreement(*torch.zeros(2, 3))
    (0.5, 0.0)
    """
    limits = torch.finfo(expected.dtype)
    gap = float((found - expected).abs().max() / expected.abs().max().clamp_min(limits.tiny))
    return 0.0 if gap < limits.eps**0.5 else gap


def _cut(
    model: nn.Module, graph: torch.fx.Graph, linear: nn.Linear, modules: dict[str, nn.Module]
) -> Classifier:
    """The model up to the last map of more than one cell, by the shapes in the graph, then mean and linear.

    An average over a part of the map leaves more than one cell and so stays with the features.
    """
    output, dropout = graph.output_node(), 0.0
    cut = output.all_input_nodes[0].all_input_nodes[0]
    while cut.all_input_nodes:
        shape = getattr(cut.meta.get("tensor_meta"), "shape", torch.Size())
        part = modules.get(str(cut.target)) if cut.op == "call_module" else None
        called = cut.target if isinstance(cut.target, str) else getattr(cut.target, "__name__", "")
        pools = isinstance(part, _POOLING_LAYERS) if part is not None else called in _POOLING_CALLS
        if not pools or (len(shape) == 4 and shape[2:].numel() > 1):
            break
        dropout = part.p if isinstance(part, nn.Dropout) else dropout
        cut = cut.all_input_nodes[0]
    output.args = (cut,)
    graph.eliminate_dead_code()
    features = torch.fx.GraphModule(model, graph, type(model).__name__)
    features.delete_all_unused_submodules()
    return Classifier(features, linear, type(model).__name__, dropout)
