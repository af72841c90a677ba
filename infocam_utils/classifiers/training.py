"""Fit a classifier, and run one over a set of images: device, precision, processes, checkpoint and resume.

Randomness is drawn per epoch from the seed, the epoch and the rank and from nothing else, so a run that is
resumed after any epoch gives the same bits as one that was never interrupted.
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import io
import itertools
import logging
import math
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import Classifier, evaluation_mode
from infocam_utils.classifiers.backbones import read_saved
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.data.store import Draft, Store, atomic_write, code_digest, report_progress

OPTIMIZERS, SCHEDULES = ("adamw", "sgd"), ("onecycle", "constant", "step")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
WARM_UP = 0.25  # share of a one-cycle run
PIECE = 10_000  # images whose features are stored as one entry: an interrupt loses at most these
CPU_PIXELS, GPU_PIXELS = 400_000, 12_800_000  # input pixels per batch unless told otherwise


logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would announce devices and processes


@dataclass(frozen=True)
class _Job:
    """What decides the result of a `fit`, in plain values, since those of a checkpoint are compared."""

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
    initial_network: str


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
) -> list[float]:
    """Minimise the mean `loss` of `model` over `train`; return the mean training loss of each epoch.

    The model is trained in place and left in evaluation mode. Each epoch is one permutation of the images,
    with the crops and flips of `geometry`, cut into ceil(N / batch_size) batches whose sizes differ by at
    most one: every image counts, no last batch is tiny.

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
    accelerator : Lightning Fabric's name, such as "cpu"; "auto" takes the best there is
    devices : processes on this machine, which share each batch of `batch_size` images; an error in one of
        them arrives as `torch.multiprocessing.ProcessRaisedException`. Under ``torchrun`` its own count is
        used, over several machines too, and each process opens its own images.
    precision : one of `PRECISIONS`, Lightning Fabric's names; the weights come back in their own type
    checkpoint : file written after each epoch; a later call for the same network and settings goes on from it

    Raises
    ------
    ValueError : an empty set, fewer images than processes, a label beyond the logits, an unknown name, a
        setting out of range, or a checkpoint that is damaged or of another training
    FloatingPointError : at the first loss that is not finite

    Examples
    --------
    >>> pixels = np.repeat(np.uint8([40, 200]), 3 * 64).reshape(2, 3, 8, 8)
    >>> train = ImageSet(pixels, torch.tensor([0, 1]), None, 2, ["dark", "light"], torch.arange(2), "example")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    >>> losses = fit(model, train, geometry=Geometry(), epochs=20, lr=0.01, accelerator="cpu")
    >>> len(losses), losses[-1] < 0.1
    (20, True)
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    job = _Job(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=schedule,
        seed=seed,
        train_only=train_only,
        lr_factors=dict(lr_factors or {}),
        geometry=asdict(geometry),
        precision=precision,
        images=train.key,
        loss=f"{type(loss).__name__} {state_digest(loss)[:16]}",
        initial_network=state_digest(model)[:16],
    )
    _check(job, train, model, devices)
    path, saved = None if checkpoint is None else Path(checkpoint), None
    if path is not None and path.exists() and os.environ.get("RANK", "0") == "0":  # it hands it on
        saved = _read_checkpoint(path, job)
    task = (model, train, loss, job, accelerator, devices, path, saved)
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
    return outcome["losses"]


def _check(job: _Job, train: ImageSet, model: nn.Module, devices: int) -> None:
    if len(train) == 0:
        raise ValueError("the training set is empty; check the split and the classes asked for")
    if min(job.epochs, job.batch_size, devices) < 1 or not 0 < job.lr < math.inf or not job.weight_decay >= 0:
        raise ValueError(
            "epochs, batch_size and devices must be at least 1, lr positive and weight_decay not negative; "
            f"were {job.epochs}, {job.batch_size}, {devices}, {job.lr} and {job.weight_decay}"
        )
    offered = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}
    for name, choices in offered.items():
        if (given := getattr(job, name)) not in choices:
            raise ValueError(f"{name} must be one of {choices}, was {given!r}")
    for prefix in [*job.lr_factors, *([] if job.train_only is None else [f"{job.train_only}."])]:
        if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
            parts = [name for name, _ in model.named_children()]
            raise ValueError(f"no parameter of the model is called {prefix}…; its parts are {parts}")


def _child(rank: int, port: int, threads: int, result: Path, model: nn.Module, *task: Any) -> None:
    """One of several processes; the first hands the weights back through the file `result`."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(threads)
    model = copy.deepcopy(model)  # what arrives is memory shared with the other processes
    losses = _train(model, *task)
    if rank == 0:
        torch.save({"model": model.state_dict(), "losses": losses}, result)


def _fabric(accelerator: str, devices: int, precision: str) -> Fabric:
    """One of the processes that work together: torchrun's, those of `fit`, or this one alone."""
    nodes = 1
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator,
        strategy=strategy,
        devices=devices,
        num_nodes=nodes,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    if fabric.world_size > 1:
        # Left standing it may abort the process. Not sooner, since torchrun's processes can join only once.
        atexit.register(_leave)
    return fabric


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _train(
    model: nn.Module,
    train: ImageSet,
    loss: nn.Module,
    job: _Job,
    accelerator: str,
    devices: int,
    checkpoint: Path | None,
    saved: dict[str, Any] | None,
) -> list[float]:
    first = next(model.parameters())
    home, own, held = first.device, first.dtype, _types(job.precision)[1]
    frozen = []
    if job.train_only is not None:
        inside = f"{job.train_only}."
        frozen = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(inside)]
    losses: list[float] = []
    try:
        fabric = _fabric(accelerator, devices, job.precision)
        if len(train) < fabric.world_size:
            raise ValueError(f"{len(train)} images for {fabric.world_size} processes; use fewer devices")
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.to(fabric.device, held).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        optimizer = _optimizer(job, model)
        if fabric.world_size > 1:
            saved = fabric.broadcast(saved)
        if saved is not None:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            losses = saved["losses"]
        wrapped, stepper = fabric.setup(model, optimizer)
        loss = copy.deepcopy(loss).to(fabric.device)
        # The caller's global generators are as before when this is over.
        with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
            for epoch in range(len(losses), job.epochs):
                model.train(job.train_only is None)
                if job.train_only is not None:
                    model.get_submodule(job.train_only).train()
                losses.append(_epoch(fabric, wrapped, stepper, train, loss, job, epoch))
                if fabric.is_global_zero and checkpoint is not None:
                    _write_checkpoint(checkpoint, job, model, optimizer, losses)
                if fabric.is_global_zero:
                    report_progress(f"training, loss {losses[-1]:.3f}", epoch + 1, job.epochs)
        if fabric.world_size > 1:  # running batch statistics differ between processes by their last batch
            model.load_state_dict(fabric.broadcast(model.state_dict()))
            fabric.barrier()  # nobody leaves while another still listens
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.to(home, None if held is None else own).eval()
    return losses


def _epoch(
    fabric: Fabric, model: nn.Module, optimizer: Any, train: ImageSet, loss: nn.Module, job: _Job, epoch: int
) -> float:
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


def _write_checkpoint(
    path: Path, job: _Job, model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]
) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content = io.BytesIO()
    torch.save({"job": asdict(job), **state, "losses": losses}, content)
    atomic_write(path, content.getvalue())


def _read_checkpoint(path: Path, job: _Job) -> dict[str, Any]:
    saved = read_saved(path, "delete this checkpoint: only the epochs in it are lost")
    if not isinstance(saved, dict) or saved.keys() != {"job", "model", "optimizer", "losses"}:
        raise ValueError(f"{path} is not a checkpoint; name another file, or delete it if it can go")
    pairs = [(name, saved["job"].get(name), now) for name, now in asdict(job).items()]
    other = "; ".join(f"{name} was {then!r}, now {now!r}" for name, then, now in pairs if then != now)
    if other:
        raise ValueError(f"{path} is of another training ({other}); delete it or name another file")
    return saved


def initialise_bias(linear: nn.Linear, prior: Tensor) -> None:
    """Start a softmax head at the class shares, bias = log π, in place.

    Under imbalance a softmax head otherwise spends its first epochs on learning π; under `PCSoftmaxLoss` π
    is in the loss, and the head starts at 0.

    Raises
    ------
    ValueError : no bias, or not one positive share for each

    Examples
    --------
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


def _types(precision: str) -> tuple[torch.dtype | None, torch.dtype | None]:
    """What layers compute in and what weights are held in meanwhile; None for their own."""
    half = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.partition("-")[0])
    return half, half if precision.endswith("-true") else None


@contextmanager
def evaluating(
    model: nn.Module, accelerator: str = "auto", precision: str = "32-true"
) -> Iterator[torch.device]:
    """The model on the best device, in evaluation mode, without gradients; afterwards as it was.

    Its convolutions are laid out channels last, a quarter faster for MobileNetV2 on a CPU; they stay so.
    With a `precision` of 16 bits layers compute, and give their output, in these: twice as fast on a CPU
    with bfloat16 as "bf16-mixed", and three times as "bf16-true", which rounds the weights as well.

    Raises
    ------
    ValueError : `precision` is not one of `PRECISIONS`

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> with evaluating(model, "cpu", "bf16-mixed") as device:
    ...     (device.type, model.training, model(torch.zeros(2)).dtype)
    ('cpu', False, torch.bfloat16)
    >>> model.training, model(torch.zeros(2)).dtype
    (True, torch.float32)
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, was {precision!r}")
    half, held = _types(precision)
    home = next(model.parameters()).device
    device = Fabric(accelerator=accelerator, devices=1).device
    exact: list[tuple[Tensor, Tensor]] = []
    try:
        with evaluation_mode(model), torch.no_grad():
            model.to(device).to(memory_format=torch.channels_last)
            if held is not None:
                both = itertools.chain(model.parameters(), model.buffers())
                exact = [(tensor, tensor.data) for tensor in both if tensor.is_floating_point()]
                for tensor, data in exact:
                    tensor.data = data.to(held)
            with nullcontext() if half is None else torch.autocast(device.type, half):
                yield device
    finally:
        for tensor, data in exact:
            tensor.data = data
        model.to(home)


def predict(
    model: nn.Module,
    images: ImageSet,
    *,
    geometry: Geometry,
    batch_size: int | None = None,
    accelerator: str = "auto",
    precision: str = "32-true",
) -> Tensor:
    """Logits (N, K) float32 on the CPU, in the order of `images`, from the centre crop of `geometry`.

    `batch_size` follows the input's size unless given: on a CPU large batches are slow, since the memory of
    their maps is returned to the system and cleared again in every layer. For `precision` see `evaluating`.

    Raises
    ------
    ValueError : an empty set of images

    Examples
    --------
    >>> pixels, number = np.zeros((5, 3, 8, 8), dtype=np.uint8), torch.arange(5)
    >>> five = ImageSet(pixels, number, None, 5, list("abcde"), number, "example")
    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), five, geometry=Geometry(crop=4)).shape
    torch.Size([5, 2])
    """
    _check_any(images)
    with evaluating(model, accelerator, precision) as device:
        return _forward(model, images, range(len(images)), geometry, batch_size, device)


def pooled_features(
    model: Classifier,
    images: ImageSet,
    *,
    geometry: Geometry,
    batch_size: int | None = None,
    accelerator: str = "auto",
    precision: str = "32-true",
    store: Store | None = None,
) -> Tensor:
    """What the linear layer sees, (N, C) float32 on the CPU, made once and kept in `store`.

    The key holds the images, the network's layers and weights below the linear layer, the geometry, the
    precision and the code. 10,000 images are an entry: a long run that is interrupted goes on where it was.

    Raises
    ------
    ValueError : an empty set of images

    Examples
    --------
    >>> model = Classifier(nn.Conv2d(3, 8, 3), nn.Linear(8, 5))
    >>> pixels, number = np.zeros((5, 3, 8, 8), dtype=np.uint8), torch.arange(5)
    >>> five = ImageSet(pixels, number, None, 5, list("abcde"), number, "example")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pooled_features(model, five, geometry=Geometry(), store=Store(folder)).shape
    torch.Size([5, 8])
    """
    _check_any(images)
    store = Store() if store is None else store
    body = nn.Sequential(model.features, model.pool)
    key = {
        "images": images.key,
        "name": model.name,
        "network": state_digest(body),
        "geometry": asdict(geometry),
        "precision": precision,
        "code": code_digest("classifiers.training"),
    }
    pieces = []
    for first in range(0, len(images), PIECE):
        rows = range(first, min(first + PIECE, len(images)))

        def make(_: Draft, rows: range = rows) -> dict[str, Tensor]:
            with evaluating(body, accelerator, precision) as device:
                return {"features": _forward(body, images, rows, geometry, batch_size, device)}

        where = {**key, "rows": [rows.start, rows.stop]}
        pieces.append(store.get("features", where, make)["features"])
        report_progress(f"features of {model.name}", rows.stop, len(images))
    return torch.from_numpy(np.concatenate(pieces))


def _check_any(images: ImageSet) -> None:
    if len(images) == 0:
        raise ValueError("there are no images; check the split and the classes asked for")


def _forward(
    module: nn.Module,
    images: ImageSet,
    rows: range,
    geometry: Geometry,
    batch_size: int | None,
    device: torch.device,
) -> Tensor:
    if batch_size is None:
        budget = CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
        batch_size = max(1, budget // geometry.sizes(images.size)[1] ** 2)
    outputs = []
    for first in rows[::batch_size]:
        pixels = images.pixels(slice(first, min(first + batch_size, rows.stop))).to(device)
        outputs.append(module(prepare(pixels, geometry)).float().cpu())
    return torch.cat(outputs)


def state_digest(module: nn.Module) -> str:
    """sha256 over a module's layers (strides and dilations are not weights), parameters and buffers.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> before = state_digest(layer)
    >>> nn.init.zeros_(layer.bias) is layer.bias and state_digest(layer) == before
    False
    """
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
