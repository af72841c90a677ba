"""Many machines: tasks computed by the workers of a Dask cluster, what they made brought home into the store.

Workers share nothing but their own copies of the data sets. What a task is, and how it is done, is told by
whoever calls; here is only who does it, what is checked before, and what happens when a worker is lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from infocam_utils.data.store import Store, code_digest, data_root

if TYPE_CHECKING:
    from distributed import Client, Worker, WorkerPlugin

TORCHRUN = (  # what it tells the processes that it starts
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
Files = Mapping[str, Mapping[str, bytes]]


class Work(Protocol):
    """A task: what it says of itself, and the key under which the store knows that it is done."""

    def key(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Work)


class ClusterError(ValueError):
    """A cluster or a worker that cannot do the work; the message says what would mend it."""


def missing(tasks: Sequence[T], data_dir: str | Path | None = None) -> list[T]:
    """The tasks whose products are not all in the store here."""
    store = Store(data_dir)

    def whole(task: T) -> bool:
        if not store.has("task", task.key()):
            return False
        made = store.get("task", task.key(), _never)["names"]
        return all((store.folder / str(name) / "entry.json").is_file() for name in made)

    return [task for task in tasks if not whole(task)]


def distribute(
    tasks: Sequence[Work],
    compute: Callable[[Any], Files],
    check: Callable[[Any], list[str]],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    data_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Compute tasks on `workers` processes of this machine or on the cluster at `scheduler`.

    Each product is in the store here, checked, as soon as its task is done. A lost worker's tasks are done
    again by another; a task that fails is told with its traceback while the others finish. An interrupt
    leaves what is done.

    Returns
    -------
    list of str
        What failed, task by task.

    Raises
    ------
    ClusterError
        No worker, or one of another version, with several threads, or without the data.
    """
    from distributed import as_completed

    store, failed, done = Store(data_dir), [], 0
    with _client(workers, scheduler, data_dir) as client:
        say(f"dashboard: {client.dashboard_link}")
        _refuse_unlike(client, tasks, check)
        futures = {client.submit(compute, task, pure=False): task for task in tasks}
        try:
            for future in as_completed(futures):
                task = futures.pop(future)
                if future.status == "error":
                    error, trace = future.exception(), future.traceback()
                    failed.append(f"{task}: {type(error).__name__}: {error}")
                    say(failed[-1] + "\n" + "".join(traceback.format_tb(trace)).rstrip())
                    continue
                made = future.result()
                for name, files in made.items():
                    store.bring(name, files)
                store.get("task", task.key(), partial(_names, made))
                done += 1
                size = sum(len(part) for files in made.values() for part in files.values())
                say(f"{done} of {len(tasks)}: {task}, {size / 1e6:.1f} MB")
                future.release()
        finally:
            client.cancel(list(futures))
    return failed


def of_torchrun() -> tuple[int, int] | None:
    """This process's number and how many there are, or None where torchrun did not start it."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def alone() -> None:
    """Go on, and start others, as a process that torchrun did not start."""
    for name in TORCHRUN:
        os.environ.pop(name, None)


def _never(_: object) -> None:
    raise AssertionError("an entry that is there is not made")


def _names(made: Files, _: object) -> dict[str, Any]:
    import numpy as np

    return {"names": np.array(sorted(made), dtype=np.str_)}


@contextlib.contextmanager
def _client(workers: int | None, scheduler: str | None, data_dir: str | Path | None) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=20)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no scheduler answers at {scheduler} ({error}); start one: dask scheduler"
            ) from None
        with client:
            yield client
        return
    workers, gpus = workers or 1, _gpus()
    if 0 < len(gpus) < workers:
        raise ClusterError(f"{workers} workers for {len(gpus)} GPUs; one takes one: --workers {len(gpus)}")
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {"OMP_NUM_THREADS": str(threads), "INFOCAM_DATA": str(data_root(data_dir))}
    options = {"n_workers": workers, "threads_per_worker": 1, "env": environment}
    with (
        LocalCluster(dashboard_address="127.0.0.1:0", host="127.0.0.1", **options) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_of_this_machine(gpus))
        client.wait_for_workers(workers, timeout=120)
        yield client


def _gpus() -> list[str]:
    """This machine's GPUs as CUDA_VISIBLE_DEVICES names them."""
    import torch

    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return said.split(",")[:count] if said is not None else [str(i) for i in range(count)]


def _of_this_machine(gpus: Sequence[str]) -> WorkerPlugin:
    """Leaves Ctrl-C to who started the workers; shows the n-th only the n-th GPU, before it looks for one."""
    from distributed import WorkerPlugin

    class OfThisMachine(WorkerPlugin):
        def setup(self, worker: Worker) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name)]

    return OfThisMachine()


def _identity() -> tuple[str, str]:
    return version("infocam"), code_digest()


def _gpu() -> str | None:
    """The GPU that a training here would use, by its own number."""
    import torch

    return str(torch.cuda.get_device_properties(0).uuid) if torch.cuda.is_available() else None


def _refuse_unlike(client: Client, tasks: Sequence[Work], check: Callable[[Any], list[str]]) -> None:
    known = client.scheduler_info(n_workers=-1)["workers"]
    if not known:
        raise ClusterError("the cluster has no worker; start one: dask worker ADDRESS --nthreads 1")
    for address, about in known.items():
        if about["nthreads"] != 1:
            raise ClusterError(
                f"worker {address} has {about['nthreads']} threads, so that trainings would share a device; "
                "start it with --nthreads 1, one worker for each GPU or group of cores"
            )
    for address, told in client.run(_identity).items():
        if told != _identity():
            raise ClusterError(
                f"worker {address} has infocam {told[0]} with other code than this {_identity()[0]}; "
                "install the same commit there"
            )
    user: dict[str, str] = {}
    for address, gpu in client.run(_gpu).items():
        if gpu is not None and user.setdefault(gpu, address) != address:
            raise ClusterError(
                f"workers {user[gpu]} and {address} share a GPU; start each with its own: "
                "CUDA_VISIBLE_DEVICES=0 dask worker …"
            )
    for address, lacking in client.run(check, list(tasks)).items():
        if lacking:
            raise ClusterError(f"worker {address}: {'; '.join(lacking)}")
