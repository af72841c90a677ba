"""Fit a classifier, and run one over a set of images: device, precision, processes, checkpoint and resume.

Randomness is drawn per step from the seed, the epoch, the step and the rank and from nothing else, so a run
that is resumed after any step gives the same bits as one that was never interrupted.
"""

from __future__ import annotations

import atexit
import copy
import hashlib
import io
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import Classifier, evaluation_mode
from infocam_utils.classifiers.backbones import read_saved
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.data.store import Draft, Store, atomic_write, code_digest, report_progress

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would announce devices and processes

T = TypeVar("T")
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")
CHECKPOINT_SECONDS = 600.0  # an interrupt loses at most these, or one epoch if that is shorter
PIECE = 10_000  # images whose features are stored as one entry: an interrupt loses at most these
CPU_PIXELS, GPU_PIXELS = 400_000, 12_800_000  # input pixels per batch; on a CPU large batches are slow
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def _one_cycle(progress: float) -> float:
    if progress < 0.25:
        return 0.04 + 0.96 * progress / 0.25
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.25) / (1 - 0.25)))


# learning rate as a share of its peak when a share `progress` in [0, 1) of the run is done
SCHEDULES: dict[str, Callable[[float], float]] = {
    "onecycle": _one_cycle,
    "constant": lambda progress: 1.0,
    "step": lambda progress: 0.1 ** math.floor(3 * progress),
}


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
    lr_factors: Mapping[str, float] | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    precision: str = "32-true",
    batch_norm: Literal["adapt", "frozen"] = "adapt",
    watch: Callable[[nn.Module], float] | None = None,
    checkpoint: str | Path | None = None,
) -> list[float]:
    """Minimise the mean `loss` of `model` over `train`; return the mean training loss of each epoch.

    The model is trained in place and left in evaluation mode. Each epoch is one permutation of the images,
    with the crops and flips of `geometry`, in ceil(N / batch_size) batches whose sizes differ by at most one.

    Parameters
    ----------
    loss : from logits (B, K) and labels (B,) to their mean; cross-entropy unless given
    lr : peak learning rate
    schedule : "onecycle" warms up over a quarter of the run, then falls as a cosine to 0; "step" divides by
        10 after each third
    weight_decay : on matrices and convolution kernels, never on biases and normalisation
    optimizer : "adamw", or "sgd" with Nesterov momentum 0.9
    lr_factors : multiples of `lr` by prefix of parameter names, such as ``{"linear": 10.0}`` for a new head
    accelerator : Lightning Fabric's name, such as "cpu"; "auto" takes the best there is
    devices : processes on this machine, which share each batch; an error in one of them arrives as
        `torch.multiprocessing.ProcessRaisedException`. Under ``torchrun`` its own count is used, over several
        machines too, and each process opens its own images.
    precision : one of `PRECISIONS`, Lightning Fabric's names; the weights come back in their own type
    batch_norm : "frozen" normalises by the running statistics that the network came with and leaves them,
        as suits weights into which they were folded once; "adapt" by the batch's, as in training from scratch
    watch : if given, its value for the model after each epoch is returned instead of the loss
    checkpoint : file written after each epoch, and by a single process every ten minutes within one; a later
        call for the same network and settings goes on from it

    Raises
    ------
    ValueError : too few images, a label beyond the logits, a setting that cannot be, or a checkpoint that is
        damaged or of another training
    FloatingPointError : at the first loss that is not finite

    Examples
    --------
    >>> pixels = np.repeat(np.uint8([40, 200]), 3 * 64).reshape(2, 3, 8, 8)
    >>> train = ImageSet(pixels, torch.tensor([0, 1]), None, 2, ["dark", "light"], torch.arange(2), "example")
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    >>> fit(model, train, geometry=Geometry(), epochs=20, lr=0.01, accelerator="cpu")[-1] < 0.1
    True
    """
    loss = nn.CrossEntropyLoss() if loss is None else loss
    job = SimpleNamespace(  # what decides the result, in plain values: a checkpoint's must be equal
        geometry=asdict(geometry),
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        weight_decay=weight_decay,
        optimizer=optimizer,
        schedule=schedule,
        seed=seed,
        lr_factors=dict(lr_factors or {}),
        precision=precision,
        batch_norm=batch_norm,
        watch=getattr(watch, "__name__", None),
        images=train.key,
        loss=f"{type(loss).__name__} {state_digest(loss)[:16]}",
        initial_network=state_digest(model)[:16],
    )
    _check(job, train, model, devices)
    path, saved = None if checkpoint is None else Path(checkpoint), None
    if path is not None and path.exists() and os.environ.get("RANK", "0") == "0":  # it hands it on
        saved = _read_checkpoint(path, job)
    task = (model, train, loss, job, saved, accelerator, devices, watch, path)
    if devices == 1 or "LOCAL_WORLD_SIZE" in os.environ:  # which torchrun sets
        return _train(*task)
    with tempfile.TemporaryDirectory() as folder:
        result, threads = Path(folder) / "result.pt", max(1, torch.get_num_threads() // devices)
        context = (find_free_network_port(), threads, result)
        torch.multiprocessing.spawn(_child, (*context, *task), nprocs=devices)
        outcome = torch.load(result, map_location="cpu", weights_only=True)
    model.load_state_dict(outcome["model"])
    model.eval()
    return outcome["values"]


def _check(job: SimpleNamespace, train: ImageSet, model: nn.Module, devices: int) -> None:
    _check_any(train)
    _types(job.precision)
    if min(job.epochs, job.batch_size, devices) < 1 or not 0 < job.lr < math.inf or not job.weight_decay >= 0:
        raise ValueError(
            "epochs, batch_size and devices must be at least 1, lr positive and weight_decay not negative; "
            f"were {job.epochs}, {job.batch_size}, {devices}, {job.lr} and {job.weight_decay}"
        )
    if job.optimizer not in OPTIMIZERS or job.schedule not in SCHEDULES:
        known = f"optimizer must be one of {list(OPTIMIZERS)} and schedule one of {list(SCHEDULES)}"
        raise ValueError(f"{known}, were {job.optimizer!r} and {job.schedule!r}")
    if job.batch_norm not in ("adapt", "frozen"):
        raise ValueError(f"batch_norm must be 'adapt' or 'frozen', was {job.batch_norm!r}")
    for prefix in job.lr_factors:
        if not any(name.startswith(prefix) for name, _ in model.named_parameters()):
            parts = [name for name, _ in model.named_children()]
            raise ValueError(f"no parameter of the model is called {prefix}…; its parts are {parts}")


def _check_any(images: ImageSet) -> None:
    if len(images) == 0:
        raise ValueError("there are no images; check the split and the classes asked for")


def _child(rank: int, port: int, threads: int, result: Path, model: nn.Module, *task: Any) -> None:
    """One of several processes; the first hands the weights back through the file `result`."""
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(threads)
    model = copy.deepcopy(model)  # what arrives is memory shared with the other processes
    values = _train(model, *task)
    if rank == 0:
        torch.save({"model": model.state_dict(), "values": values}, result)


def _fabric(accelerator: str, devices: int, precision: str) -> Fabric:
    """One of the processes that work together: torchrun's, those of `fit`, or this one alone."""
    nodes = 1
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    strategy = "ddp" if devices * nodes > 1 else "auto"
    options: dict[str, Any] = {"devices": devices, "num_nodes": nodes, "precision": precision}
    fabric = Fabric(accelerator=accelerator, strategy=strategy, **options)
    fabric.launch()
    if fabric.world_size > 1:
        # Left standing it may abort the process. Not sooner, since torchrun's processes can join only once.
        atexit.register(leave)
    return fabric


def shared(make: Callable[[], T], missing: bool, helped: Callable[[], object]) -> T:
    """What `make` gives in the first of torchrun's processes, in all of them; without torchrun just that.

    Where it is `missing` there, `make` trains and the other processes call `helped`, which must train too.

    >>> shared(lambda: {"weight": 1}, False, lambda: None)
    {'weight': 1}
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return make()
    fabric = _fabric("auto", 1, "32-true")
    if fabric.broadcast(missing) and not fabric.is_global_zero:
        helped()
    made = fabric.broadcast(make() if fabric.is_global_zero else None)
    fabric.barrier()  # nobody leaves while another still listens
    return made  # type: ignore[return-value]


def leave() -> None:
    """Dissolve the group of processes that trained together, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _train(
    model: nn.Module, train: ImageSet, loss: nn.Module, job: SimpleNamespace, saved: Any, *place: Any
) -> list[float]:
    accelerator, devices, watch, checkpoint = place
    first, held = next(model.parameters()), _types(job.precision)[1]
    home, own = first.device, first.dtype if held else None
    values: list[float] = []
    try:
        fabric = _fabric(accelerator, devices, job.precision)
        if len(train) < fabric.world_size:
            raise ValueError(f"{len(train)} images for {fabric.world_size} processes; use fewer devices")
        model.to(fabric.device, held).to(memory_format=torch.channels_last)  # a quarter faster on a CPU
        optimizer = _optimizer(job, model)
        saved, done, total = fabric.broadcast(saved), 0, 0.0
        if saved is not None:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            values, done, total = saved["values"], saved["step"], saved["total"]
        wrapped, stepper = fabric.setup(model, optimizer)
        loss = copy.deepcopy(loss).to(fabric.device)

        def keep(step: int, total: float) -> None:
            if fabric.is_global_zero and checkpoint is not None:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                content = io.BytesIO()
                parts = {"job": vars(job), **state, "values": values, "step": step, "total": total}
                torch.save(parts, content)
                atomic_write(checkpoint, content.getvalue())

        # The caller's global generators are as before when this is over.
        with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
            steps = _Steps(fabric, wrapped, stepper, train, loss, job, keep)
            for epoch in range(len(values), job.epochs):
                model.train()
                for layer in model.modules() if job.batch_norm == "frozen" else ():
                    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                        layer.eval()
                mean = steps.epoch(epoch, done, total)
                values.append(mean if watch is None else watch(model))
                done, total = 0, 0.0
                keep(0, 0.0)
                steps.tell(epoch + 1, 0, math.ceil(len(train) / max(job.batch_size, fabric.world_size)), mean)
        if fabric.world_size > 1:  # running batch statistics differ between processes by their last batch
            model.load_state_dict(fabric.broadcast(model.state_dict()))
            fabric.barrier()  # nobody leaves while another still listens
    finally:
        model.to(home, own).eval()
    return values


@dataclass
class _Steps:
    """What takes the steps of one process, and tells and keeps how far it is."""

    fabric: Fabric
    model: nn.Module
    optimizer: Any
    train: ImageSet
    loss: nn.Module
    job: SimpleNamespace
    keep: Callable[[int, float], None]  # steps of this epoch that are done, and the sum of their losses
    taken: int = 0  # by this process, of all epochs
    began: float = field(default_factory=time.monotonic)
    kept: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def epoch(self, epoch: int, done: int, total: float) -> float:
        """Pass the images that are left once; the mean loss of all."""
        fabric, train, job = self.fabric, self.train, self.job
        world, rank = fabric.world_size, fabric.global_rank
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(_stream(job.seed, epoch)))
        batches = order.tensor_split(math.ceil(len(train) / max(job.batch_size, world)))
        top, seen = int(train.labels.max()), sum(map(len, batches[:done]))
        for step, batch in enumerate(batches[done:], done):
            torch.manual_seed(_stream(job.seed, epoch, rank, 1, step))  # dropout and the like
            augmentation = torch.Generator().manual_seed(_stream(job.seed, epoch, rank, 2, step))
            rate = SCHEDULES[job.schedule]((epoch + step / len(batches)) / job.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["peak_lr"]
            mine = batch.tensor_split(world)[rank]
            pixels, labels = train.pixels(mine).to(fabric.device), train.labels[mine].to(fabric.device)
            logits = self.model(prepare(pixels, Geometry(**job.geometry), train=True, generator=augmentation))
            if logits.ndim != 2 or top >= logits.shape[1]:
                found, remedy = tuple(logits.shape), f"build it with num_classes={train.num_classes}"
                raise ValueError(
                    f"labels go up to {top} but the model gives logits of shape {found}; {remedy}"
                )
            value = self.loss(logits, labels)
            if not math.isfinite(number := value.item()):
                raise FloatingPointError(
                    f"the loss became {number} in epoch {epoch + 1}, step {step + 1}, at a learning rate of "
                    f"{rate * job.lr:.3g}; lower lr (it was {job.lr:g}), or use precision='32-true'"
                )
            # Gradients are averaged over processes; weighing by share keeps unequal shares exact.
            fabric.backward(value * (len(mine) * world / len(batch)))
            self.optimizer.step()
            self.optimizer.zero_grad()
            total, seen = total + number * len(mine), seen + len(batch)
            self.taken += 1
            if step + 1 < len(batches):
                if world == 1 and time.monotonic() - self.kept > CHECKPOINT_SECONDS:
                    self.keep(step + 1, total)
                    self.kept = time.monotonic()
                if time.monotonic() - self.told > 1:
                    self.tell(epoch, step + 1, len(batches), total * world / seen)
        self.kept = time.monotonic()
        summed = fabric.all_reduce(
            torch.tensor(total, dtype=torch.float64).to(fabric.device, torch.float32), reduce_op="sum"
        )
        return float(summed) / len(train)  # type: ignore[arg-type]

    def tell(self, epoch: int, step: int, of_epoch: int, loss: float) -> None:
        """Report that so many epochs, and so many of the next one's steps, are done."""
        if self.fabric.is_global_zero:
            self.told = time.monotonic()
            done, whole = epoch * of_epoch + step, self.job.epochs * of_epoch
            left = _duration((self.told - self.began) / self.taken * (whole - done))
            words = f"epoch {math.ceil(done / of_epoch)} of {self.job.epochs}, loss {loss:.3f}, {left} left"
            report_progress(f"training, {words}", done, whole)


def _duration(seconds: float) -> str:
    """A time in words that suit its size.

    >>> _duration(42.3), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5940 else f"{seconds / 3600:.1f} h"


def _stream(*numbers: int) -> int:
    """An independent 63-bit seed for each tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _optimizer(job: SimpleNamespace, model: nn.Module) -> torch.optim.Optimizer:
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            prefixes = [prefix for prefix in job.lr_factors if name.startswith(prefix)]
            factor = job.lr_factors[max(prefixes, key=len)] if prefixes else 1.0
            groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": group,
            "weight_decay": job.weight_decay if decays else 0.0,
            "peak_lr": job.lr * factor,
        }
        for (factor, decays), group in groups.items()
    ]
    return OPTIMIZERS[job.optimizer](settings, lr=job.lr)


def _read_checkpoint(path: Path, job: SimpleNamespace) -> dict[str, Any]:
    saved = read_saved(path, "delete this checkpoint: only the epochs in it are lost")
    if not isinstance(saved, dict) or saved.keys() != {
        "job",
        "model",
        "optimizer",
        "values",
        "step",
        "total",
    }:
        raise ValueError(f"{path} is not a checkpoint; name another file, or delete it if it can go")
    pairs = [(name, saved["job"].get(name), now) for name, now in vars(job).items()]
    other = "; ".join(f"{name} was {then!r}, now {now!r}" for name, then, now in pairs if then != now)
    if other:
        raise ValueError(f"{path} is of another training ({other}); delete it or name another file")
    return saved


def initialise_bias(linear: nn.Linear, prior: Tensor) -> None:
    """Start a softmax head at the class shares, bias = log π, in place.

    A softmax head otherwise spends its first epochs on learning π, which `PCSoftmaxLoss` has in the loss.

    ValueError unless there is one positive share for each bias.

    >>> head = nn.Linear(4, 2)
    >>> initialise_bias(head, torch.tensor([0.25, 0.75]))
    >>> head.bias.exp().detach()
    tensor([0.2500, 0.7500])
    """
    if linear.bias is None or prior.shape != linear.bias.shape or not bool((prior > 0).all()):
        count, given = linear.out_features, prior.tolist()
        raise ValueError(
            f"the prior must have one positive entry for each of the {count} biases, was {given}"
        )
    with torch.no_grad():
        linear.bias.copy_(prior.log())


def _types(precision: str) -> tuple[torch.dtype | None, torch.dtype | None]:
    """What layers compute in and what weights are held in meanwhile; None for their own."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, was {precision!r}")
    half = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.partition("-")[0])
    return half, half if precision.endswith("-true") else None


@lru_cache(maxsize=8)
def best_precision(accelerator: str = "auto") -> str:
    """The precision that suits the device: "bf16-mixed" where that is clearly faster, "32-true" elsewhere.

    Measured, not looked up: a product of matrices in both, in turns, the best of ten; faster by at least a
    half. A product is limited by arithmetic alone, so that another process on the machine slows both alike.

    >>> best_precision("cpu") in PRECISIONS
    True
    """
    device = Fabric(accelerator=accelerator, devices=1).device
    factors = {
        kind: torch.ones(1024, 1024, device=device, dtype=kind) for kind in (torch.float32, torch.bfloat16)
    }
    seconds = dict.fromkeys(factors, math.inf)
    for kind, factor in [*factors.items()] * 11:  # the first of each warms up
        start = time.perf_counter()
        torch.mm(factor, factor)[0, 0].item()  # waits for the device
        seconds[kind] = min(seconds[kind], time.perf_counter() - start)
    return "bf16-mixed" if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else "32-true"


@contextmanager
def evaluating(
    model: nn.Module, accelerator: str = "auto", precision: str = "32-true"
) -> Iterator[torch.device]:
    """The model on the best device, in evaluation mode, without gradients; afterwards as it was.

    Its convolutions are laid out channels last, a quarter faster for MobileNetV2 on a CPU; they stay so.
    With a `precision` of 16 bits layers compute, and give their output, in these: twice as fast on a CPU
    with bfloat16 as "bf16-mixed", and three times as "bf16-true", which rounds the weights as well.
    ValueError unless it is one of `PRECISIONS`.

    Examples
    --------
    >>> model = nn.Linear(2, 2)
    >>> with evaluating(model, "cpu", "bf16-mixed") as device:
    ...     (device.type, model.training, model(torch.zeros(2)).dtype)
    ('cpu', False, torch.bfloat16)
    >>> model.training, model(torch.zeros(2)).dtype
    (True, torch.float32)
    """
    half, held = _types(precision)
    home = next(model.parameters()).device
    device = Fabric(accelerator=accelerator, devices=1).device
    exact: list[tuple[Tensor, Tensor]] = []
    try:
        with evaluation_mode(model), torch.no_grad():
            model.to(device).to(memory_format=torch.channels_last)
            if held is not None:
                both = (*model.parameters(), *model.buffers())
                exact = [(tensor, tensor.data) for tensor in both if tensor.is_floating_point()]
                for tensor, data in exact:
                    tensor.data = data.to(held)
            with torch.autocast(device.type, half, enabled=half is not None):
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
    accelerator: str = "auto",
    precision: str = "32-true",
) -> Tensor:
    """Logits (N, K) float32 on the CPU, in the order of `images`, from the centre crop of `geometry`.

    For `precision` see `evaluating`. ValueError for an empty set of images.

    Examples
    --------
    >>> pixels, number = np.zeros((5, 3, 8, 8), dtype=np.uint8), torch.arange(5)
    >>> five = ImageSet(pixels, number, None, 5, list("abcde"), number, "example")
    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), five, geometry=Geometry(crop=4)).shape
    torch.Size([5, 2])
    """
    _check_any(images)
    return _forward(model, images, range(len(images)), geometry, accelerator, precision)


def pooled_features(
    model: Classifier,
    images: ImageSet,
    *,
    geometry: Geometry,
    accelerator: str = "auto",
    precision: str = "32-true",
    store: Store | None = None,
) -> Tensor:
    """What the linear layer sees, (N, C) float32 on the CPU, made once and kept in `store`.

    The key holds the images, the network's layers and weights below the linear layer, the geometry, the
    precision and the code. ValueError for an empty set of images.

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
            return {"features": _forward(body, images, rows, geometry, accelerator, precision)}

        where = {**key, "rows": [rows.start, rows.stop]}
        pieces.append(store.get("features", where, make)["features"])
        report_progress(f"features of {model.name}", rows.stop, len(images))
    return torch.from_numpy(np.concatenate(pieces))


def _forward(
    module: nn.Module, images: ImageSet, rows: range, geometry: Geometry, accelerator: str, precision: str
) -> Tensor:
    outputs = []
    with evaluating(module, accelerator, precision) as device:
        budget = CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
        batch_size = max(1, budget // geometry.sizes(images.size)[1] ** 2)
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
