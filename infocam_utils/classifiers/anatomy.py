"""Where the last maps of a network are, and how its logits come from them: found by watching one pass.

A class activation map is exact where the logits are linear in the mean of some maps, `f_k = W_k · p + b_k`
with `p = mean_u F(u)` (way "linear"), or where a layer norm stands between, `f_k = W_k · (γ (p − μ)/σ + β) +
b_k`, which is affine within one image (way "norm"). Anything else between maps and logits, a hidden layer or
a class token, leaves the gradient of the logits at the last maps on which they depend (way "gradient").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from infocam_utils.classifiers.adapt import disagreement

Way = Literal["linear", "norm", "gradient"]
_WIRING = (nn.Linear, nn.Identity, nn.Dropout)  # what a gradient is not taken at: their input says as much
_FEW = 6  # names in a message


@dataclass(frozen=True)
class Layout:
    """How a tensor holds maps: (B, C, h, w), (B, h, w, C), or tokens (B, extra + h·w, C) of an h x w grid."""

    kind: Literal["channels_first", "channels_last", "tokens"]
    grid: tuple[int, int]
    extra: int = 0

    def maps(self, tensor: Tensor) -> Tensor:
        """The maps (B, C, h, w) that a tensor of this layout holds.

        >>> Layout("tokens", (2, 3), extra=1).maps(torch.zeros(4, 7, 5)).shape
        torch.Size([4, 5, 2, 3])
        """
        if self.kind == "channels_first":
            return tensor
        if self.kind == "channels_last":
            return tensor.movedim(-1, 1)
        return tensor[:, self.extra :].mT.unflatten(2, self.grid)


@dataclass(frozen=True)
class Norm:
    """A layer norm between the mean of the maps and the linear layer: γ (C,), β (C,), and ε."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float


@dataclass(frozen=True)
class Anatomy:
    """How logits come from maps, for images of one size; see :func:`anatomy`.

    Attributes
    ----------
    way : "linear", "norm" or "gradient"
    layer : the module whose output, or within which, the maps are
    call : the number of the torch function that makes the maps, of the ways "linear" and "norm"
    layout : how that tensor holds them
    between : modules between the maps and the logits
    """

    way: Way
    layer: str
    layout: Layout
    call: int = -1
    between: tuple[str, ...] = ()


@dataclass
class _Call:
    """A call of a torch function that made a tensor: its number, module and tensor; a layer's inputs."""

    number: int
    module: str
    output: Tensor
    inputs: tuple[Any, ...] = ()


@dataclass
class Seen:
    """What a pass left: the maps, and the inputs and parameters of the last linear layers and layer norms."""

    linears: list[_Call] = field(default_factory=list)
    norms: list[_Call] = field(default_factory=list)
    maps: list[_Call] = field(default_factory=list)


class _Watch(TorchFunctionMode):
    """Counts the calls of torch functions; keeps layers' inputs and the tensors that `wanted` asks for."""

    def __init__(self, wanted: Callable[[int, Tensor], bool]) -> None:
        super().__init__()
        self.seen, self.wanted, self.number, self.module = Seen(), wanted, 0, ""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.number += 1
        if isinstance(output, Tensor):
            if func is F.linear:
                given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
                inputs = (given["input"], given["weight"], given.get("bias"))
                self.seen.linears.append(_Call(self.number, self.module, output, inputs))
                del self.seen.linears[:-2]
            elif func in (F.layer_norm, torch.layer_norm):
                names = ("input", "normalized_shape", "weight", "bias", "eps")
                given = {"eps": 1e-5} | dict(zip(names, args, strict=False)) | (kwargs or {})
                norm = Norm(given.get("weight"), given.get("bias"), given["eps"])
                if output.numel() == len(output) * output.shape[-1]:  # one place
                    self.seen.norms.append(_Call(self.number, self.module, output, (given["input"], norm)))
            if self.wanted(self.number, output):
                self.seen.maps.append(_Call(self.number, self.module, output))
        return output


def watched(model: nn.Module, images: Tensor, call: int) -> tuple[Tensor, Seen]:
    """Logits of images, and what the pass left; of maps those that torch function number `call` made."""
    with _Watch(lambda number, _: number == call) as watch:
        logits = model(images)
    return logits, watch.seen


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DataParallel and torch.compile, which must be watched as it is.

    >>> inside = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(torch.compile(inside))) is inside
    True
    """
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(
        model, "_orig_mod"
    ):
        inside: Any = model
        model = getattr(inside, "_orig_mod", None) or inside.module
    return model


def anatomy(model: nn.Module, images: Tensor, layer: str | None = None) -> Anatomy:
    """How the logits of a network, in evaluation mode, come from its last maps, for images (B, c, H, W).

    Two passes of the first image at most. With `layer`, a module's name, its output holds the maps and the
    way is the gradient.

    Raises
    ------
    ValueError : no logits (B, K), no maps of more than one cell before them, or a `layer` without any

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    >>> found = anatomy(net, torch.randn(1, 3, 9, 9))
    >>> found.way, found.layer, found.layout.grid
    ('linear', '0', (7, 7))
    """
    one, size = images[:1], (int(images.shape[-2]), int(images.shape[-1]))
    if layer is None:
        with (
            torch.no_grad(),
            _Watch(lambda _, out: bool(_layouts(out, size))) as watch,
            _naming(model, watch),
        ):
            logits = model(one)
        _check_logits(model, logits)
        found = _exact(watch.seen, logits, size)
        if found is not None:
            return found
    return _by_gradient(model, one, size, layer)


def linear_parts(seen: Seen, logits: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Input (B, C), weight and bias of the linear layer that made the logits; None where none did."""
    for call in reversed(seen.linears):
        x, weight, bias = call.inputs
        if (
            call.output.shape == logits.shape
            and x.ndim == 2
            and not disagreement(call.output.detach(), logits.detach())
        ):
            return x, weight, bias
    return None


def pooled_parts(seen: Seen, x: Tensor) -> Iterator[tuple[Tensor, Norm | None]]:
    """What may be the mean of the maps, (B, C): the linear layer's input, or what a norm made it from."""
    yield x, None
    for call in reversed(seen.norms):
        given, norm = call.inputs
        if call.output.numel() == x.numel() and not disagreement(call.output.reshape(x.shape), x):
            yield given.reshape(x.shape), norm
            return


def _exact(seen: Seen, logits: Tensor, size: tuple[int, int]) -> Anatomy | None:
    parts = linear_parts(seen, logits)
    if parts is None:
        return None
    for pooled, norm in pooled_parts(seen, parts[0]):
        for call in reversed(seen.maps):
            for layout in _layouts(call.output, size):
                maps = layout.maps(call.output)
                if maps.shape[1] == pooled.shape[1] and not disagreement(maps.mean((2, 3)), pooled):
                    way: Way = "linear" if norm is None else "norm"
                    return Anatomy(way, call.module, layout, call.number)
    return None


def _by_gradient(model: nn.Module, one: Tensor, size: tuple[int, int], layer: str | None) -> Anatomy:
    order: list[tuple[str, nn.Module, Any]] = []
    names = {module: name for name, module in model.named_modules() if module is not model}
    if layer is not None and layer not in names.values():
        near = [name for name in names.values() if name.count(".") <= 1][-_FEW:]
        raise ValueError(f"the network has no layer {layer!r}; it has, for instance, {', '.join(near)}")

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        order.append((names[module], module, output))

    handles = [module.register_forward_hook(keep) for module in names]
    try:
        with torch.inference_mode(False), torch.enable_grad(), _Watch(lambda *_: False) as watch:
            logits = model(one.clone().requires_grad_())
            _check_logits(model, logits)
        places = [
            (i, layout, output)
            for i, (name, module, output) in enumerate(order)
            if isinstance(output, Tensor)
            and (name == layer if layer is not None else not isinstance(module, _WIRING))
            for layout in _layouts(output, size)[:1]
        ]
        # What matters is whether a path leads there, so a head that starts at zero is passed by.
        parts = linear_parts(watch.seen, logits)
        end = (logits if parts is None else parts[0]).float()
        weights = torch.randn(end.shape, generator=torch.Generator().manual_seed(0)).to(end.device)
        given = [output for *_, output in places]
        slopes = torch.autograd.grad((end * weights).sum(), given, allow_unused=True) if places else ()
    finally:
        for handle in handles:
            handle.remove()
    reached = [
        (i, layout)
        for (i, layout, _), slope in zip(places, slopes, strict=True)
        if slope is not None and (layer is not None or bool(layout.maps(slope).any()))
    ]
    if not reached:
        what = f"layer {layer!r}" if layer is not None else type(model).__name__
        raise ValueError(
            f"{what} has no maps of more than one cell on which the logits depend; name a layer that has, "
            f"with layer=, one of the modules that ran: {', '.join(n for n, *_ in order[-_FEW:])}"
        )
    i, layout = reached[-1]
    leaves = [f"{n} ({type(m).__name__})" for n, m, _ in order[i + 1 :] if not next(m.children(), None)]
    return Anatomy("gradient", order[i][0], layout, between=tuple(leaves))


def _layouts(tensor: Tensor, size: tuple[int, int]) -> list[Layout]:
    """How a tensor may hold maps of images (H, W): more than one cell, in the images' proportions."""
    if not tensor.is_floating_point() or 0 in tensor.shape:
        return []
    made = []
    if tensor.ndim == 4:
        _, a, b, c = tensor.shape
        made = [Layout("channels_first", (b, c)), Layout("channels_last", (a, b))]
    elif tensor.ndim == 3:
        for extra in range(min(9, tensor.shape[1] - 1)):  # class tokens and registers
            cells = tensor.shape[1] - extra
            height = round((cells * size[0] / size[1]) ** 0.5)
            if height and cells % height == 0:
                made.append(Layout("tokens", (height, cells // height), extra))
    return [one for one in made if _in_proportion(one.grid, size)]


def _in_proportion(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether some stride leads from the image to the grid, to within a cell on each side."""
    (h, w), (height, width) = grid, size
    if h * w < 2 or h > height + 8 or w > width + 8:
        return False
    return abs(h * width / height - w) <= 1.5 and abs(w * height / width - h) <= 1.5


def _check_logits(model: nn.Module, logits: Any) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(model).__name__} must return logits (B, K), returned {given}; wrap it so")


@contextmanager
def _naming(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Inside, the watch knows in which module a function is called."""
    handles, stack = [], [""]

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(name)
            watch.module = name

        return hook

    def leave(*_: Any) -> None:
        stack.pop()
        watch.module = stack[-1]

    try:
        for name, module in model.named_modules():
            if module is not model:
                handles += [
                    module.register_forward_pre_hook(enter(name)),
                    module.register_forward_hook(leave),
                ]
        yield
    finally:
        for handle in handles:
            handle.remove()
