"""Fit a classifier: device, precision, several processes, checkpoint and resume.

Randomness is drawn per epoch from the seed, the epoch and the rank and from nothing else, so a run that is
resumed after any epoch gives the same bits as one that was never interrupted.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from infocam_utils.classifiers import adapt as pooled_module
from infocam_utils.classifiers import backbones as models_module
from infocam_utils.classifiers.adapt import Classifier, evaluation_mode
from infocam_utils.data import images as images_module
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.data.store import atomic_write, cached, fingerprint, report_progress

PIECE = 10_000  # images whose features are cached in one file: an interrupt loses at most these
CPU_PIXELS, GPU_PIXELS = 400_000, 12_800_000  # input pixels per batch unless told otherwise


def quiet_fabric() -> None:
    """Keep Lightning Fabric from announcing processes and precision on stderr, in notebooks above all."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@contextmanager
def evaluating(model: nn.Module, accelerator: str = "auto") -> Iterator[torch.device]:
    """The model on the best device, in evaluation mode, without gradients; afterwards as it was.

    Its convolutions are laid out channels last, a quarter faster for MobileNetV2 on a CPU; they stay so.

    >>> model = nn.Linear(2, 2)
    >>> with evaluating(model, "cpu") as device:
    ...     (device.type, model.training)
    ('cpu', False)
    >>> model.training
    True
    """
    home = next(model.parameters()).device
    quiet_fabric()
    device = Fabric(accelerator=accelerator, devices=1).device
    try:
        with evaluation_mode(model), torch.no_grad():
            model.to(device).to(memory_format=torch.channels_last)
            yield device
    finally:
        model.to(home)


def predict(
    model: nn.Module,
    images: ImageSet,
    *,
    geometry: Geometry,
    batch_size: int | None = None,
    accelerator: str = "auto",
) -> Tensor:
    """Logits (N, K) float32 on the CPU, in the order of `images`, from the centre crop of `geometry`.

    `batch_size` follows the input's size unless given: on a CPU large batches are slow, since the memory of
    their maps is returned to the system and cleared again in every layer.

    Raises
    ------
    ValueError
        For an empty set of images.

    >>> import numpy as np
    >>> pixels, number = np.zeros((5, 3, 8, 8), dtype=np.uint8), torch.arange(5)
    >>> five = ImageSet(pixels, number, None, 5, list("abcde"), number, "example")
    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), five, geometry=Geometry(crop=4)).shape
    torch.Size([5, 2])
    """
    with evaluating(model, accelerator) as device:
        return _forward(model, images, range(len(images)), geometry, batch_size, device)


def pooled_features(
    model: Classifier,
    images: ImageSet,
    *,
    geometry: Geometry,
    batch_size: int | None = None,
    accelerator: str = "auto",
    cache_dir: Path | None = None,
) -> Tensor:
    """What the linear layer sees, (N, C) float32 on the CPU: made once and cached.

    The cache is keyed by the images, the network's layers and weights below the linear layer, the geometry
    and the code, and written 10,000 images at a time: a long run that is interrupted goes on where it was.

    Raises
    ------
    ValueError
        For an empty set of images.
    """
    body = nn.Sequential(model.features, model.pool)
    key = {
        "images": images.key,
        "network": model.name,
        "layers": hashlib.sha256(repr(body).encode()).hexdigest(),  # strides and dilations are not weights
        "weights": state_digest(body),
        "geometry": asdict(geometry),
        "code": fingerprint(images_module, models_module, pooled_module, Path(__file__)),
    }
    pieces = []
    for first in range(0, max(len(images), 1), PIECE):  # an empty set reaches the error of _forward
        rows = range(first, min(first + PIECE, len(images)))

        def make(rows: range = rows) -> dict[str, Tensor]:
            with evaluating(body, accelerator) as device:
                return {"features": _forward(body, images, rows, geometry, batch_size, device)}

        where = {**key, "rows": [rows.start, rows.stop]}
        pieces.append(cached("features", where, make, cache_dir)["features"])
        report_progress(f"features of {model.name}", rows.stop, len(images))
    return torch.cat(pieces)


def state_digest(module: nn.Module) -> str:
    """sha256 over names and values of all parameters and buffers, for cache keys.

    >>> layer = nn.Linear(2, 2)
    >>> before = state_digest(layer)
    >>> nn.init.zeros_(layer.bias) is layer.bias and state_digest(layer) == before
    False
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _forward(
    module: nn.Module,
    images: ImageSet,
    rows: range,
    geometry: Geometry,
    batch_size: int | None,
    device: torch.device,
) -> Tensor:
    if not rows:
        raise ValueError("there are no images; check the split and the classes asked for")
    if batch_size is None:
        budget = CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
        batch_size = max(1, budget // geometry.sizes(images.size)[1] ** 2)
    outputs = []
    for first in rows[::batch_size]:
        pixels = images.pixels(slice(first, min(first + batch_size, rows.stop))).to(device)
        outputs.append(module(prepare(pixels, geometry)).float().cpu())
    return torch.cat(outputs)


OPTIMIZERS, SCHEDULES = ("adamw", "sgd"), ("onecycle", "constant", "step")
WARM_UP = 0.25  # share of a one-cycle run


@dataclass(frozen=True)
class History:
    """What `fit` did: mean training loss of each epoch, seconds of training, and images passed."""

    losses: tuple[float, ...]
    seconds: float
    samples: int


@dataclass(frozen=True)
class _Job:
    """The settings of one `fit`, plain values only, since a checkpoint's are compared with them."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    optimizer: str
    schedule: str
    seed: int
    train_only: str | None
    lr_factors: dict[str, float]
    geometry: dict[str, Any]
    precision: str
    images: str
    loss: str


def fit(
    model: nn.Module,
    train: ImageSet,
    loss: nn.Module | None = None,
    *,
    geometry: Geometry,
    epochs: int,
    lr: float,
    batch_size: int = 128,
    weight_decay: float = 0.0,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    schedule: Literal["onecycle", "constant", "step"] = "onecycle",
    seed: int = 0,
    train_only: str | None = None,
    lr_factors: Mapping[str, float] | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    precision: str = "32-true",
    checkpoint: str | Path | None = None,
) -> History:
    """Minimise the mean `loss` of `model` over `train`; trained in place and left in evaluation mode.

    Each epoch is one permutation of the images, with the crops and flips of `geometry`, cut into
    ceil(N / batch_size) batches whose sizes differ by at most one: every image counts, no last batch is tiny.

    Parameters
    ----------
    loss : from logits (B, K) and labels (B,) to their mean; cross-entropy unless given
    lr, schedule : peak learning rate; "onecycle" warms up over a quarter of the run and falls as a cosine
        to 0, "step" divides by 10 after each third, "constant" stays
    weight_decay : on matrices and convolution kernels, never on biases and normalisation
    optimizer : "adamw", or "sgd" with Nesterov momentum 0.9
    train_only : name of the one submodule to train, such as "linear"; the rest stays as it is, its batch
        statistics too
    lr_factors : multiples of `lr` by prefix of parameter names, such as ``{"linear": 10.0}`` for a new head
    devices : processes on this machine, which share each batch of `batch_size` images. Under ``torchrun`` its
        own count is used, over several machines too, and each process opens its own images.
    precision : Lightning Fabric's name, such as "32-true" or "bf16-mixed"
    checkpoint : file written after each epoch; a later call with the same settings goes on from it

    Raises
    ------
    ValueError
        For an empty set, fewer images than processes, a label beyond the logits, an unknown name, a
        setting out of range, or a checkpoint made with other settings.
    FloatingPointError
        At the first loss that is not finite.

    >>> pixels = np.repeat(np.uint8([40, 200]), 3 * 64).reshape(2, 3, 8, 8)
    >>> train = ImageSet(pixels, torch.tensor([0, 1]), None, 2, ["dark", "light"], torch.arange(2), "example")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    >>> history = fit(model, train, geometry=Geometry(), epochs=20, lr=0.01, accelerator="cpu")
    >>> history.samples, history.losses[-1] < 0.1
    (40, True)
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    job = _Job(epochs, batch_size, lr, weight_decay, optimizer, schedule, seed, train_only,
               dict(lr_factors or {}), asdict(geometry), precision, train.key,
               f"{type(loss).__name__} {state_digest(loss)[:16]}")  # fmt: skip
    _check(job, train, model)
    task = (model, train, loss, job, accelerator, devices, None if checkpoint is None else Path(checkpoint))
    if devices == 1 or "LOCAL_WORLD_SIZE" in os.environ:  # which torchrun sets
        return _train(*task)
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        result = Path(folder) / "result.pt"
        arguments = (port, max(1, torch.get_num_threads() // devices), result, *task)
        torch.multiprocessing.spawn(_child, arguments, nprocs=devices)
        outcome = torch.load(result, map_location="cpu", weights_only=True)
    model.load_state_dict(outcome["model"])
    model.eval()
    return History(tuple(outcome["losses"]), outcome["seconds"], outcome["samples"])


def _child(rank: int, port: int, threads: int, result: Path, model: nn.Module, *task: Any) -> None:
    """One of several processes; the first hands the weights back through the file `result`."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(threads)
    model = copy.deepcopy(model)  # what arrives is memory shared with the other processes
    history = _train(model, *task)
    if rank == 0:
        torch.save({"model": model.state_dict(), **asdict(history)}, result)
    torch.distributed.destroy_process_group()


def _check(job: _Job, train: ImageSet, model: nn.Module) -> None:
    if len(train) == 0:
        raise ValueError("the training set is empty; check the split and the classes asked for")
    if job.epochs < 1 or job.batch_size < 1 or not 0 < job.lr < math.inf or job.weight_decay < 0:
        raise ValueError(
            "epochs and batch_size must be at least 1, lr positive and weight_decay not negative; were "
            f"{job.epochs}, {job.batch_size}, {job.lr} and {job.weight_decay}"
        )
    if job.optimizer not in OPTIMIZERS or job.schedule not in SCHEDULES:
        raise ValueError(
            f"optimizer must be one of {OPTIMIZERS} and schedule one of {SCHEDULES}, were {job.optimizer!r} "
            f"and {job.schedule!r}"
        )
    for prefix in [*job.lr_factors, *([] if job.train_only is None else [f"{job.train_only}."])]:
        if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
            parts = [name for name, _ in model.named_children()]
            raise ValueError(f"no parameter of the model is called {prefix}…; its parts are {parts}")


def _train(model: nn.Module, train: ImageSet, loss: nn.Module, job: _Job, accelerator: str, devices: int,
           checkpoint: Path | None) -> History:  # fmt: skip
    fabric = _fabric(accelerator, devices, job.precision)
    if len(train) < fabric.world_size:
        raise ValueError(f"{len(train)} images for {fabric.world_size} processes; use fewer devices")
    home = next(model.parameters()).device
    frozen = [] if job.train_only is None else [
        p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(f"{job.train_only}.")
    ]  # fmt: skip
    losses: list[float] = []
    seconds = 0.0
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.to(fabric.device).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        optimizer = _optimizer(job, model)
        if checkpoint is not None and checkpoint.exists():
            losses, seconds = _resume(checkpoint, job, model, optimizer)
        wrapped, stepper = fabric.setup(model, optimizer)
        loss = copy.deepcopy(loss).to(fabric.device)
        # The caller's global generators are as before when this is over.
        with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
            for epoch in range(len(losses), job.epochs):
                start = time.perf_counter()
                model.train(job.train_only is None)
                if job.train_only is not None:
                    model.get_submodule(job.train_only).train()
                losses.append(_epoch(fabric, wrapped, stepper, train, loss, job, epoch))
                seconds += time.perf_counter() - start
                if fabric.is_global_zero and checkpoint is not None:
                    _save(checkpoint, job, model, optimizer, losses, seconds)
                if fabric.is_global_zero:
                    report_progress(f"training, loss {losses[-1]:.3f}", epoch + 1, job.epochs)
        if fabric.world_size > 1:  # running batch statistics differ between processes by their last batch
            model.load_state_dict(fabric.broadcast(model.state_dict()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.to(home).eval()
    return History(tuple(losses), seconds, len(losses) * len(train))


def _epoch(fabric: Fabric, model: nn.Module, optimizer: Any, train: ImageSet, loss: nn.Module, job: _Job,
           epoch: int) -> float:  # fmt: skip
    """Pass all images once; their mean loss."""
    world, rank, geometry = fabric.world_size, fabric.global_rank, Geometry(**job.geometry)
    torch.manual_seed(_stream(job.seed, epoch, rank, 1))  # dropout and the like
    augmentation = torch.Generator().manual_seed(_stream(job.seed, epoch, rank, 2))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_stream(job.seed, epoch)))
    batches = order.tensor_split(math.ceil(len(train) / max(job.batch_size, world)))
    total, top = torch.zeros((), dtype=torch.float64), int(train.labels.max())
    for step, batch in enumerate(batches):
        rate = _rate(job.schedule, (epoch + step / len(batches)) / job.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["peak_lr"]
        mine = batch.tensor_split(world)[rank]
        pixels, labels = train.pixels(mine).to(fabric.device), train.labels[mine].to(fabric.device)  # uint8
        logits = model(prepare(pixels, geometry, train=True, generator=augmentation))
        if logits.ndim != 2 or top >= logits.shape[1]:
            raise ValueError(
                f"labels go up to {top} but the model gives logits of shape {tuple(logits.shape)}; build it "
                f"with num_classes={train.num_classes}"
            )
        value = loss(logits, labels)
        number = value.item()
        if not math.isfinite(number):
            raise FloatingPointError(
                f"the loss became {number} in epoch {epoch + 1}, step {step + 1}, at a learning rate of "
                f"{rate * job.lr:.3g}; lower lr (it was {job.lr:g}), or use precision='32-true'"
            )
        # Gradients are averaged over processes; weighing by share keeps unequal shares exact.
        fabric.backward(value * (len(mine) * world / len(batch)))
        optimizer.step()
        optimizer.zero_grad()
        total += number * len(mine)
    summed = fabric.all_reduce(total.to(fabric.device, torch.float32), reduce_op="sum")
    return float(summed) / len(train)  # type: ignore[arg-type]


def _fabric(accelerator: str, devices: int, precision: str) -> Fabric:
    quiet_fabric()
    nodes = 1
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=nodes,
                    precision=precision)  # type: ignore[arg-type]  # fmt: skip
    fabric.launch()
    return fabric


def _stream(*numbers: int) -> int:
    """An independent 63-bit seed for each tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _optimizer(job: _Job, model: nn.Module) -> torch.optim.Optimizer:
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefixes = [prefix for prefix in job.lr_factors if name.startswith(prefix)]
            factor = job.lr_factors[max(prefixes, key=len)] if prefixes else 1.0
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    settings = [
        {"params": group, "weight_decay": job.weight_decay if decays else 0.0, "peak_lr": job.lr * factor}
        for (factor, decays), group in groups.items()
    ]
    if job.optimizer == "adamw":
        return torch.optim.AdamW(settings, lr=job.lr)
    return torch.optim.SGD(settings, lr=job.lr, momentum=0.9, nesterov=True)


def _rate(schedule: str, progress: float) -> float:
    """Learning rate as a share of its peak when a share `progress` in [0, 1) of the run is done."""
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 0.1 ** math.floor(3 * progress)
    if progress < WARM_UP:
        return 0.04 + 0.96 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _save(path: Path, job: _Job, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float],
          seconds: float) -> None:  # fmt: skip
    content = io.BytesIO()
    torch.save({"job": asdict(job), "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "losses": losses, "seconds": seconds}, content)  # fmt: skip
    atomic_write(path, content.getvalue())


def _resume(path: Path, job: _Job, model: nn.Module,
            optimizer: torch.optim.Optimizer) -> tuple[list[float], float]:  # fmt: skip
    saved = torch.load(path, map_location="cpu", weights_only=True)
    then, now = saved["job"], asdict(job)
    other = {name: f"{then.get(name)!r}, now {now[name]!r}" for name in now if then.get(name) != now[name]}
    if other:
        raise ValueError(f"{path} was written with other settings ({other}); delete it or name another file")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["losses"], saved["seconds"]


def initialise_bias(linear: nn.Linear, prior: Tensor) -> None:
    """Start a softmax head at the class shares, bias = log π, in place.

    Under imbalance a softmax head otherwise spends its first epochs on learning π; under `PCSoftmaxLoss` π
    is in the loss, and the head starts at 0.

    >>> head = nn.Linear(4, 2)
    >>> initialise_bias(head, torch.tensor([0.25, 0.75]))
    >>> head.bias.exp().detach()
    tensor([0.2500, 0.7500])
    """
    if linear.bias is None or prior.shape != linear.bias.shape or not bool((prior > 0).all()):
        raise ValueError(
            f"the prior must have one positive entry for each of the {linear.out_features} biases; it was "
            f"{prior.tolist()}, and the layer has {'no' if linear.bias is None else 'a'} bias"
        )
    with torch.no_grad():
        linear.bias.copy_(prior.log())
