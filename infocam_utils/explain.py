"""Why this class and not that one: infoCAM of any classifier, as maps in nats that know their picture.

:class:`InfoCAM` takes a network as it is and pictures as they come; its :class:`Explanation` of a batch
holds one signed map for each image, whose mean plus an offset is the log odds of the two classes, `f_y −
f_against`.
"""

from __future__ import annotations

import difflib
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infocam_utils.cam import Against, Padding, Rival, contrast_weights, region_sum, rival_classes
from infocam_utils.classifiers.adapt import disagreement, evaluation_mode
from infocam_utils.classifiers.anatomy import (
    Anatomy,
    Way,
    anatomy,
    linear_parts,
    pooled_parts,
    unwrapped,
    watched,
)
from infocam_utils.localization import boxes_from_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = ((0.13, 0.40, 0.67), (0.70, 0.09, 0.17))  # of maps below and above zero, which is white
SHOWN = 5  # classes whose probability a figure has


@dataclass(frozen=True)
class Explanation:
    """Maps of a batch and what they are of; a slice or a list of numbers takes some of its images.

    Attributes
    ----------
    maps : (B, h, w), nats, positive where the image speaks for its class and against the other
    logits : (B, K), the network's own
    labels : (B,), the class y of each map
    log_odds : (B,), `f_y − f_against`, nats; for CAM the logit
    offset : (B,), the part of the log odds that lies in no place: the difference of biases
    residual : (B,), what mean and offset lack of the log odds, before any region sum: rounding, but for the
        way "gradient"
    images : (B, 3, H, W), what the network saw
    rivals : the classes that each image's is held against, none where it is the mean of all others
    plain : CAM, against nothing
    way, layer : how the map was had and where, see :mod:`infocam_utils.classifiers.anatomy`
    between : of the way "gradient", the modules that stand between the maps and the logits
    classes : names of the classes, if they are known
    """

    maps: Tensor
    logits: Tensor
    labels: Tensor
    log_odds: Tensor
    offset: Tensor
    residual: Tensor
    images: Tensor
    rivals: tuple[tuple[int, ...], ...]
    plain: bool
    way: Way
    layer: str
    between: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: slice | Sequence[int]) -> Explanation:
        picked = torch.arange(len(self))[rows if isinstance(rows, slice) else list(rows)]
        names = ("maps", "logits", "labels", "log_odds", "offset", "residual", "images")
        parts: dict[str, Any] = {name: getattr(self, name)[picked] for name in names}
        return replace(self, **parts, rivals=tuple(self.rivals[i] for i in picked))

    def name(self, label: int) -> str:
        """A class in words."""
        return self.classes[label] if self.classes is not None else f"class {label}"

    def question(self, i: int) -> str:
        """What map `i` answers: "robin against sparrow", or for CAM the class alone."""
        rivals = ", ".join(map(self.name, self.rivals[i])) or "all others"
        return self.name(int(self.labels[i])) + f" against {rivals}" * (not self.plain)

    def sentences(self) -> list[str]:
        """What each map says, read as information.

        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> found = InfoCAM(model, against=1, classes=["robin", "sparrow"])(torch.zeros(1, 3, 8, 8), "robin")
        >>> found.sentences()[0].startswith("robin against sparrow: log odds")
        True
        """
        said = []
        for i in range(len(self)):
            odds, offset, residual = (float(t[i]) for t in (self.log_odds, self.offset, self.residual))
            text = f"{self.question(i)}: {'logit' if self.plain else 'log odds'} {odds:+.2f} nats"
            text += f" = mean of the map {odds - offset - residual:+.2f}"
            text += f" + difference of biases {offset:+.2f}" * bool(offset)
            text += f" + what the map does not hold {residual:+.2f}" * (self.way == "gradient")
            said.append(text)
        return said

    def facts(self, i: int) -> dict[str, Any]:
        """What map `i` says, for a machine: classes, probability, nats, and a box in pixels of the input."""
        label = int(self.labels[i])
        return {
            "class": self.name(label),
            "against": [self.name(k) for k in self.rivals[i]],
            "probability": float(self.logits[i].float().softmax(0)[label]),
            "log_odds": float(self.log_odds[i]),
            "mean_of_map": float(self.log_odds[i] - self.offset[i] - self.residual[i]),
            "offset": float(self.offset[i]),
            "residual": float(self.residual[i]),
            "way": self.way,
            "layer": self.layer,
            "box": self[[i]].boxes()[0].tolist(),
            "input": list(self.images.shape[2:]),
        }

    def pictures(self) -> np.ndarray:
        """The images as the network saw them, uint8 (B, H, W, 3).

        ImageNet's normalisation is undone; an image that cannot come from it is stretched from black to
        white.
        """
        shape = (3, 1, 1) if self.images.shape[1] == 3 else (1, 1, 1)
        mean, std = (
            torch.tensor(v if shape[0] == 3 else [np.mean(v)]).view(shape)
            for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        seen = self.images.float().cpu() * std + mean
        low, high = seen.amin((1, 2, 3), keepdim=True), seen.amax((1, 2, 3), keepdim=True)
        beyond = (low < -0.05) | (high > 1.05)
        seen = torch.where(beyond, (seen - low) / (high - low).clamp_min(1e-9), seen).clamp(0, 1)
        return (seen.expand(-1, 3, -1, -1) * 255).round().byte().movedim(1, -1).numpy()

    def boxes(self, threshold: float = 0.5) -> Tensor:
        """Box (B, 4) of the largest part of each map above a share of its range; x0 y0 x1 y1 in pixels."""
        size = (int(self.images.shape[2]), int(self.images.shape[3]))
        return boxes_from_maps(self.maps.float(), size, [threshold])[:, 0]

    def overlay(self) -> np.ndarray:
        """The pictures in grey under their maps, uint8 (B, H, W, 3): red for the class, blue against it.

        Each map is on its own scale; where it is 0 the picture is as it was.
        """
        size = (int(self.images.shape[2]), int(self.images.shape[3]))
        fine = F.interpolate(self.maps[:, None].float().cpu(), size, mode="bilinear", align_corners=False)
        share = fine / self.maps.float().cpu().abs().amax((1, 2))[:, None, None, None].clamp_min(1e-30)
        signed = share.movedim(1, -1).numpy()  # (B, H, W, 1)
        grey: np.ndarray = self.pictures().mean(-1, keepdims=True) / 255 * 0.75 + 0.2
        colour = np.where(signed < 0, np.array(COLOURS[0]), np.array(COLOURS[1]))
        strength = 0.75 * np.abs(signed)
        return (255 * (grey * (1 - strength) + colour * strength)).round().astype(np.uint8)

    def show(self, threshold: float = 0.5, title: str | None = None) -> Figure:
        """A figure: the picture, the map over it with box and a bar in nats, and the probabilities.

        Of more than one image the maps alone, in a grid. The box encloses the largest part of the map above
        `threshold`, a share of its range. Needs matplotlib.
        """
        from matplotlib.figure import Figure

        pictures, overlays, boxes = self.pictures(), self.overlay(), self.boxes(threshold)
        if len(self) == 1:
            fig = Figure(figsize=(10.5, 3.6), layout="constrained")
            left, middle, right = fig.subplots(1, 3, width_ratios=(1, 1.15, 0.9))
            left.imshow(pictures[0])
            left.set_axis_off()
            self._draw(fig, middle, overlays, boxes, 0)
            middle.set_title("")
            self._probabilities(right)
            fig.suptitle(title or self.sentences()[0], fontsize="medium")
            return fig
        columns = min(4, len(self))
        lines = math.ceil(len(self) / columns)
        fig = Figure(figsize=(3.4 * columns, 3.3 * lines), layout="constrained")
        axes = fig.subplots(lines, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for i, ax in zip(range(len(self)), axes.flat, strict=False):
            self._draw(fig, ax, overlays, boxes, i)
        if title:
            fig.suptitle(title)
        return fig

    def save(self, path: str | Path, threshold: float = 0.5, title: str | None = None) -> Path:
        """Write :meth:`show`'s figure to a file, whose ending says the format."""
        self.show(threshold, title).savefig(path, dpi=150)
        return Path(path)

    def _draw(self, fig: Figure, ax: Any, overlays: np.ndarray, boxes: Tensor, i: int) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize
        from matplotlib.patches import Rectangle

        ax.imshow(overlays[i])
        ax.set_axis_off()
        x0, y0, x1, y1 = boxes[i].tolist()
        ax.add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, lw=2, color="black"))
        ax.set_title(f"{self.question(i)}\n{float(self.log_odds[i]):+.2f} nats", fontsize="small")
        reach = float(self.maps[i].abs().max()) or 1.0
        colours = LinearSegmentedColormap.from_list("nats", [COLOURS[0], (1.0, 1.0, 1.0), COLOURS[1]])
        bar = fig.colorbar(ScalarMappable(Normalize(-reach, reach), colours), ax=ax, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize="x-small")
        bar.set_label("nats at this place", fontsize="x-small")

    def _probabilities(self, ax: Any) -> None:
        shown, label = self.logits[0].float().softmax(0), int(self.labels[0])
        top = shown.topk(min(SHOWN, len(shown))).indices.tolist()
        top = list(dict.fromkeys([*top, label, *self.rivals[0][:SHOWN]]))[::-1]
        colours = dict.fromkeys(self.rivals[0], COLOURS[0]) | {label: COLOURS[1]}
        values = [100 * float(shown[k]) for k in top]
        ax.barh([self.name(k) for k in top], values, color=[colours.get(k, "0.7") for k in top])
        ax.set_xlabel("probability, %", fontsize="small")
        ax.set_xlim(0, 100)
        ax.tick_params(labelsize="small")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)


class InfoCAM:
    """infoCAM of any classifier: `InfoCAM(model, against="sparrow")(image, "robin")`.

    The network is taken as it is, also inside DataParallel and torch.compile. Where its logits are linear in
    the mean of its last maps, or a layer norm stands between, maps are exact, and their mean plus `offset`
    is the log odds of the two classes (completeness). Else they are the gradient of the log odds at the last
    maps, averaged over places, times the maps: Grad-CAM of the *difference*, without its ReLU. That equals
    infoCAM where infoCAM is exact, and is unmoved by a common vector in the class weights always; what its
    mean lacks is `residual`.

    Every call is one pass of the batch, in evaluation mode, in the network's own device and dtype and the
    caller's autocast; every submodule has its own mode back afterwards, no hook and no gradient stays. The
    first batch of an image size is watched to find the maps, at the cost of one or two images.

    Parameters
    ----------
    model : logits (B, K) of images (B, c, H, W)
    against : what the class is held against: a class by number or name, several as a list (their mean), a
        tensor (B,) or (B, m) of each image's own; "others", the mean of all others; "least_likely",
        "runner_up"; None is CAM. For an image whose class is its own rival the map is zero.
    region, padding : see :func:`infocam_utils.cam.region_sum`
    layer : name of the module at whose output the gradient is taken; found where None
    classes : names of the K classes
    transform : of a picture, PIL to a tensor (3, H, W); by default as torchvision's classifiers have it: the
        shorter side to 256 pixels, the middle 224, ImageNet's mean and standard deviation

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 20))
    >>> found = InfoCAM(model, against=7)(torch.randn(4, 3, 32, 32), labels=3)
    >>> found.maps.shape, found.way, bool((found.residual.abs() < 1e-5).all())
    (torch.Size([4, 30, 30]), 'linear', True)
    """

    def __init__(
        self,
        model: nn.Module,
        against: Any = "least_likely",
        region: int = 1,
        padding: Padding = "same",
        *,
        layer: str | None = None,
        classes: Sequence[str] | None = None,
        transform: Any = None,
    ) -> None:
        region_sum(torch.zeros(1, 1, 1), region, padding)  # options are refused here, before any image
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a torch.nn.Module, was {type(model).__name__}")
        self.model = unwrapped(model)
        self.region, self.padding, self.layer = region, padding, layer
        self.classes = tuple(classes) if classes is not None else None
        self.transform = transform
        named = against is None or (isinstance(against, str) and against in get_args(Rival))
        self.against: Against = against if named else self._numbers(against)
        self._found: dict[tuple[int, ...], Anatomy] = {}  # by the images' shape

    def __call__(self, images: Any, labels: Any = None) -> Explanation:
        """Maps of images for the given labels, or for the predicted ones.

        Images are floating (B, 3, H, W), normalised as the network wants them; uint8 (B, 3, H, W) or (B, H,
        W, 3); a PIL image or a path, or a list of such, which go through `transform`. Labels are one for all
        images, or (B,) in a list or tensor; numbers or names.
        """
        parameter = next(self.model.parameters(), torch.zeros(()))
        batch = read_images(images, self.transform).to(parameter.device, parameter.dtype)
        chosen = None if labels is None else self._labels(labels, len(batch)).to(batch.device)
        size = tuple(batch.shape[1:])
        with evaluation_mode(self.model):
            for _ in range(2):  # a network that was changed since is watched anew
                found = self._found.get(size) or anatomy(self.model, batch, self.layer)
                self._found[size] = found
                if found.way == "gradient":
                    return self._by_gradient(found, batch, chosen)
                made = self._exactly(found, batch, chosen)
                if made is not None:
                    return made
                del self._found[size]
        name = type(self.model).__name__
        raise RuntimeError(f"{name} computes the images of one batch in different ways; pass them one by one")

    def _exactly(self, found: Anatomy, batch: Tensor, chosen: Tensor | None) -> Explanation | None:
        """One pass that catches maps and linear layer; None where the logits are not made from them."""
        dims = 3 if found.layout.kind == "tokens" else 4
        with torch.inference_mode():
            logits, seen = watched(self.model, batch, found.call)
            parts = linear_parts(seen, logits)
            if parts is None or not seen.maps or seen.maps[0].output.ndim != dims:
                return None
            x, weight, bias = parts
            features = found.layout.maps(seen.maps[0].output)  # (B, C, h, w)
            pooled = features.mean((2, 3))
            fitting = (p for p in pooled_parts(seen, x) if p[0].shape == pooled.shape)
            mean, norm = next((p for p in fitting if not disagreement(pooled, p[0])), (None, None))
            if mean is None:
                return None
            labels = self._or_predicted(chosen, logits)
            vectors = contrast_weights(weight, labels, self.against, logits)  # (B, C)
            offset = torch.zeros(len(batch), dtype=logits.dtype, device=logits.device)
            if bias is not None:
                offset = offset + contrast_weights(bias[:, None], labels, self.against, logits)[:, 0]
            dtype = torch.promote_types(features.dtype, vectors.dtype)
            features, shift = features.to(dtype), torch.zeros((), dtype=dtype, device=features.device)
            if norm is not None:  # within one image (W ⊙ γ)(F − μ)/σ + W β
                mean = mean.to(dtype)
                deviation = (mean.var(1, correction=0, keepdim=True) + norm.eps).sqrt()  # (B, 1)
                offset = offset if norm.bias is None else offset + vectors @ norm.bias.to(vectors.dtype)
                vectors = (vectors if norm.weight is None else vectors * norm.weight) / deviation
                shift = (vectors.sum(1) * mean.mean(1))[:, None, None]
            maps = torch.einsum("bc,bchw->bhw", vectors.to(dtype), features) - shift
        return self._explained(found, batch, logits, labels, maps, offset)

    def _by_gradient(self, found: Anatomy, batch: Tensor, chosen: Tensor | None) -> Explanation:
        """A pass without gradients up to the maps and with gradients from there, and their gradient."""
        caught: list[Tensor] = []

        def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            torch.set_grad_enabled(True)
            caught[:] = [output.detach().requires_grad_()]
            return caught[0].clone()  # which may be changed in place

        handle = self.model.get_submodule(found.layer).register_forward_hook(cut)
        try:
            with torch.inference_mode(False), torch.no_grad():
                logits = self.model(batch)
                labels = self._or_predicted(chosen, logits)
                odds = contrast_weights(logits.T, labels, self.against, logits.detach()).diagonal()
                (slope,) = torch.autograd.grad(odds.float().sum(), caught)
        finally:
            handle.remove()
        with torch.no_grad():
            features = found.layout.maps(caught[0].detach()).float()
            weights = found.layout.maps(slope).float().sum((2, 3))  # the mean gradient times the places
            maps = torch.einsum("bc,bchw->bhw", weights, features)
            offset = torch.zeros(len(batch), device=batch.device)
            return self._explained(found, batch, logits.detach(), labels, maps, offset)

    def _explained(
        self, found: Anatomy, batch: Tensor, logits: Tensor, labels: Tensor, maps: Tensor, offset: Tensor
    ) -> Explanation:
        with torch.no_grad():
            odds = contrast_weights(logits.T, labels, self.against, logits).diagonal()
            residual = odds - offset - maps.mean((1, 2))
            rivals = rival_classes(labels, logits.shape[1], self.against, logits)
            maps = region_sum(maps, self.region, self.padding)
            # Cloned outside inference mode, results are ordinary tensors, which may be changed in place.
            return Explanation(
                maps=maps.clone(),
                logits=logits.clone(),
                labels=labels.clone(),
                log_odds=odds.clone(),
                offset=offset.clone(),
                residual=residual.clone(),
                images=batch,
                rivals=((),) * len(batch) if rivals is None else tuple(map(tuple, rivals.tolist())),
                plain=self.against is None,
                way=found.way,
                layer=found.layer,
                between=found.between,
                classes=self.classes,
            )

    def _or_predicted(self, chosen: Tensor | None, logits: Tensor) -> Tensor:
        if self.classes is not None and len(self.classes) != logits.shape[1]:
            raise ValueError(f"there are {len(self.classes)} classes for {logits.shape[1]} logits; name all")
        return logits.argmax(1) if chosen is None else chosen

    # ---- classes

    def _numbers(self, given: Any) -> Any:
        """Classes by number: a number, a list or a tensor as it is, names by their place in `classes`."""
        if isinstance(given, Tensor) or (isinstance(given, int | np.integer) and not isinstance(given, bool)):
            return given if isinstance(given, Tensor) else int(given)
        if isinstance(given, np.ndarray):
            return torch.from_numpy(given)
        if isinstance(given, str):
            if self.classes is None:
                named = ", ".join(map(repr, get_args(Rival)))
                raise ValueError(f"{given!r} is neither {named} nor a class; pass classes=[...] to use names")
            if given not in self.classes:
                near = difflib.get_close_matches(given, self.classes) or [
                    name for name in self.classes if given.lower() in name.lower()
                ]
                hint = f"did you mean {', '.join(map(repr, near[:3]))}?" if near else "see classes"
                raise ValueError(f"there is no class {given!r}; {hint}")
            if self.classes.count(given) > 1:
                numbers = [k for k, name in enumerate(self.classes) if name == given]
                raise ValueError(f"{given!r} is the name of classes {numbers}; give the number of one")
            return self.classes.index(given)
        if isinstance(given, Sequence) and len(given):
            return [self._numbers(one) for one in given]
        raise TypeError(f"a class is a number or a name, several a list or a tensor of these; got {given!r}")

    def _labels(self, given: Any, count: int) -> Tensor:
        labels = torch.as_tensor(self._numbers(given))
        labels = labels.expand(count) if labels.ndim == 0 else labels
        if labels.shape != (count,):
            raise ValueError(
                f"labels must be one, or one for each of {count} images, were {tuple(labels.shape)}"
            )
        return labels


def read_images(images: Any, transform: Any = None) -> Tensor:
    """A batch (B, 3, H, W) in floating point from what :class:`InfoCAM` takes.

    >>> read_images(np.zeros((2, 8, 9, 3), dtype=np.uint8)).shape
    torch.Size([2, 3, 8, 9])
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    if not isinstance(images, Tensor):
        one = isinstance(images, str | Path) or not isinstance(images, Sequence)
        read = [_transformed(_opened(picture), transform) for picture in ([images] if one else images)]
        if len({image.shape for image in read}) != 1:
            raise ValueError(f"images must come to one size, got {sorted({tuple(i.shape) for i in read})}")
        return torch.stack(read)
    if (
        images.ndim != 4
        or len(images) == 0
        or not (images.is_floating_point() or images.dtype == torch.uint8)
    ):
        given = f"{tuple(images.shape)} of {images.dtype}"
        raise ValueError(f"images must be (B, 3, H, W), not empty, floating or uint8, were {given}")
    if images.dtype == torch.uint8:
        images = images.movedim(-1, 1) if images.shape[1] != 3 and images.shape[-1] == 3 else images
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        images = (images / 255 - mean) / std
    return images


def _opened(picture: Any) -> Image:
    """A picture in RGB, as a viewer shows it."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if isinstance(picture, str | Path):
        try:
            with Image.open(picture) as file:
                return ImageOps.exif_transpose(file).convert("RGB")
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no picture {picture}") from None
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"{picture} is no picture that can be read ({error})") from error
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    raise TypeError(f"an image is a tensor, an array, a PIL image or a path, was {type(picture).__name__}")


def _transformed(picture: Image, transform: Any, size: int = 224) -> Tensor:
    if transform is not None:
        return transform(picture)
    scale = round(size * 8 / 7) / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    small = picture.resize((width, height)).crop((left, top, left + size, top + size))
    return read_images(np.array(small)[None])[0]


def stock_classifier(
    name: str, weights: str | Path | None, classes: Sequence[str] | None = None
) -> tuple[nn.Module, list[str] | None, Any]:
    """A classifier of torchvision's, or with "timm:" before its name of timm's: network, class names,
    transform.

    `weights` is a state dict, or "imagenet", which the library downloads; `classes` are ImageNet's unless
    given.

    Raises
    ------
    ValueError : an unknown name, with near matches; no weights, or weights of another network
    FileNotFoundError : no such file

    >>> stock_classifier("resnet19", "imagenet")
    Traceback (most recent call last):
    ValueError: torchvision has no classifier 'resnet19'; did you mean resnet18, resnet152, resnet101?
    """
    import torchvision

    library, _, short = name.rpartition(":")
    known: list[str] = torchvision.models.list_models(torchvision.models)
    if library == "timm":
        import timm

        known = timm.list_models()
    if library not in ("", "timm") or short not in known:
        near = difflib.get_close_matches(short, known) or known[:3]
        raise ValueError(
            f"{library or 'torchvision'} has no classifier {short!r}; did you mean {', '.join(near)}?"
        )
    if weights is None:
        raise ValueError(
            f"{name} without weights explains nothing; give a file, its state dict, or 'imagenet', which "
            "downloads its own"
        )
    asked = str(weights) == "imagenet"
    if not asked and not Path(weights).is_file():
        raise FileNotFoundError(f"there is no weights file {weights}")
    own = torchvision.models.get_model_weights("resnet18" if library else short).DEFAULT
    names = list(classes) if classes is not None else list(own.meta["categories"])
    if library:
        model = timm.create_model(short, pretrained=asked, num_classes=len(names))
    else:
        options: dict[str, Any] = {"weights": own} if asked else {"weights": None, "num_classes": len(names)}
        model = torchvision.models.get_model(short, **options)
    if not asked:
        try:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError, AttributeError, pickle.UnpicklingError, EOFError, OSError) as error:
            first = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{weights} holds no weights of {name} with {len(names)} classes: {first}"
            ) from error
    return model.eval(), names, None if library else own.transforms()
