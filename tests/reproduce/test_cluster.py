"""Many machines, as processes that share nothing: a killed worker, and workers that cannot work."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import pytest
from drawn_cub import write_cub_layout
from nbformat.v4 import new_code_cell, new_notebook

from infocam_utils.data.store import Store
from infocam_utils.experiments import tasks as work
from infocam_utils.reproduce import cluster

SMALL = {"train_limit": 600, "passes": 1200, "few": 10, "batch_size": 20}


def birds(seeds, data_dir, dataset="minibirds", **changes):
    """One task a seed: a network trained on drawn birds with PC-softmax."""
    given = {
        "dataset": dataset,
        "seeds": seeds,
        "limit": 400,
        "recipe": SMALL | changes,
        "data_dir": str(data_dir),
    }
    return [task for task in work.tasks_of("03_x", given) if task.recipe["loss"] == "pc"]


class Machines:
    """A scheduler and workers, each a process with a folder of its own for data and store."""

    def __init__(self, folder):
        self.folder, self.file, self.workers = folder, folder / "scheduler.json", {}
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0"
        )
        for _ in range(200):
            if self.file.exists():
                break
            time.sleep(0.1)

    @property
    def address(self):
        import json

        return json.loads(self.file.read_text())["address"]

    def _start(self, kind, *arguments, data=None):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "INFOCAM_DATA": str(data or self.folder / "none")}
        command = [sys.executable, "-m", "dask", kind, *arguments, "--scheduler-file", str(self.file)]
        log = (self.folder / f"{kind}.log").open("a")
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder)

    def start(self, name, threads=1):
        data = self.folder / name
        data.mkdir(exist_ok=True)
        options = ("--nthreads", str(threads), "--no-nanny", "--name", name, "--dashboard-address", ":0")
        self.workers[name] = self._start("worker", *options, data=data)
        self._until(len(self.workers))

    def stop(self, name):
        self.workers[name].kill()
        self.workers.pop(name).wait()
        self._until(len(self.workers))

    def _until(self, count):
        from distributed import Client

        with Client(self.address) as client:
            for _ in range(300):
                if len(client.scheduler_info(n_workers=-1)["workers"]) == count:
                    return
                time.sleep(0.1)
        raise TimeoutError(f"{count} workers are not there; see {self.folder}")


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    made = Machines(tmp_path_factory.mktemp("machines"))
    made.start("a")
    yield made
    for process in (*made.workers.values(), made.scheduler):
        process.kill()
        process.wait()


def contents(store_root):
    found = Store(store_root).folder.glob("network-*/*")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


def test_a_killed_workers_tasks_are_done_again_to_the_same_bits(machines, tmp_path):
    tasks = birds([*range(8)], tmp_path / "home")
    machines.start("b")
    said = []

    def say(text):
        said.append(text)
        if text.startswith("2 of 8"):
            machines.workers["b"].kill()

    failed = cluster.distribute(
        tasks, work.compute, work.check, scheduler=machines.address, data_dir=tmp_path / "home", say=say
    )
    machines.stop("b")
    assert not failed
    assert said[-1].startswith("8 of 8")
    assert cluster.missing(tasks, tmp_path / "home") == []
    for task in tasks:
        work.compute(task, tmp_path / "serial")
    home, serial = contents(tmp_path / "home"), contents(tmp_path / "serial")
    assert len({name.split("/")[0] for name in home}) == 8
    assert home == serial
    # All eight were trained by the workers, none here.
    assert not list((tmp_path / "home" / "cache").glob("checkpoint-*"))


def test_a_failing_task_is_told_and_the_others_finish(machines, tmp_path):
    good, bad = birds([0, 1], tmp_path)
    bad = replace(bad, recipe=bad.recipe | {"lr": 1e30})
    said = []
    how = {"scheduler": machines.address, "data_dir": tmp_path, "say": said.append}
    failed = cluster.distribute([bad, good], work.compute, work.check, **how)
    (text,) = failed
    assert text.startswith("network of minibirds, pc, seed 1: ")
    assert "the loss became nan" in text
    assert any("1 of 2: network of minibirds, pc, seed 0" in line for line in said)
    assert cluster.missing([bad, good], tmp_path) == [bad]


def test_a_worker_without_the_data_says_what_it_lacks(machines, tmp_path):
    write_cub_layout(tmp_path / "my-birds", 6, 4, seed=4, num_classes=4)
    small = {
        "backbone": "small_resnet",
        "weights": "none",
        "resize": 32,
        "crop": 32,
        "frozen": False,
        "few": 2,
    }
    tasks = birds([0], tmp_path, "my-birds", **small)
    how = {"scheduler": machines.address, "data_dir": tmp_path}
    with pytest.raises(cluster.ClusterError, match=r"worker tcp.*my-birds"):
        cluster.distribute(tasks, work.compute, work.check, **how)
    write_cub_layout(machines.folder / "a" / "my-birds", 6, 4, seed=5, num_classes=4)
    with pytest.raises(cluster.ClusterError, match="my-birds is another than the one that was planned with"):
        cluster.distribute(tasks, work.compute, work.check, **how)


def test_a_worker_of_other_code_or_with_threads_that_share_a_device_is_refused(
    machines, tmp_path, monkeypatch
):
    tasks = birds([0], tmp_path)
    how = {"scheduler": machines.address, "data_dir": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "code_digest", lambda: "another")
        with pytest.raises(cluster.ClusterError, match="install the same commit there"):
            cluster.distribute(tasks, work.compute, work.check, **how)
    machines.start("two", threads=2)
    with pytest.raises(cluster.ClusterError, match=r"has 2 threads.*--nthreads 1"):
        cluster.distribute(tasks, work.compute, work.check, **how)
    machines.stop("two")


def test_every_worker_has_a_gpu_of_its_own_also_a_restarted_one(machines, tmp_path, monkeypatch):
    """There is none here: what a worker would see is what its environment says."""
    monkeypatch.setattr(cluster, "_gpus", lambda: ["5", "GPU-b"])

    def seen(client):
        return sorted(client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES")).values())

    with cluster._client(2, None, tmp_path) as client:
        assert seen(client) == ["5", "GPU-b"]
        (first, pid), _ = client.run(os.getpid).items()
        os.kill(pid, signal.SIGKILL)
        for _ in range(300):
            known = client.scheduler_info(n_workers=-1)["workers"]
            if len(known) == 2 and first not in known:
                break
            time.sleep(0.1)
        assert seen(client) == ["5", "GPU-b"]
    tasks = birds([0], tmp_path)
    with pytest.raises(cluster.ClusterError, match="3 workers for 2 GPUs; one takes one: --workers 2"):
        cluster.distribute(tasks, work.compute, work.check, workers=3, data_dir=tmp_path)
    machines.start("b")
    monkeypatch.setattr(cluster, "_gpu", lambda: "GPU-a")
    with pytest.raises(cluster.ClusterError, match="share a GPU; start each with its own: CUDA_VISIBLE"):
        cluster.distribute(tasks, work.compute, work.check, scheduler=machines.address, data_dir=tmp_path)
    machines.stop("b")


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster._gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-x")
    assert cluster._gpus() == ["3", "GPU-x"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster._gpus() == []


def test_ctrl_c_leaves_what_is_done(tmp_path):
    """A terminal's: to the command and to its workers."""
    options = "-p dataset=digits -p frozen=false -p passes=6600 -p few=12 -p seeds=[0,1]".split()
    command = [sys.executable, "-m", "infocam_utils", "run", "03", "--profile", "smoke", *options]
    command += ["--workers", "1", "--output", str(tmp_path / "out")]
    environment = os.environ | {"INFOCAM_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # Whoever runs the tests in the background has Ctrl-C ignored, and so would the command.
    how |= {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    running = subprocess.Popen(command, **how)
    try:
        for line in running.stdout:
            if line.startswith("1 of 6"):
                break
        os.killpg(running.pid, signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 130, said
    assert "interrupted; what is finished is kept, and the same command goes on from there" in said
    assert "Traceback" not in said
    assert 1 <= len([*(tmp_path / "data" / "cache").glob("task-*/entry.json")]) < 6


def test_no_scheduler_and_no_worker_are_told(machines, tmp_path):
    machines.stop("a")
    tasks = birds([0], tmp_path)
    with pytest.raises(cluster.ClusterError, match="the cluster has no worker; start one: dask worker"):
        cluster.distribute(tasks, work.compute, work.check, scheduler=machines.address, data_dir=tmp_path)
    machines.start("a")


BOOK = """
import os
from infocam_utils.experiments import recipe as recipes
from infocam_utils.classifiers.training import state_digest
made = recipes.recipe(dataset, data_dir, **recipe)
print("devices", made.devices, "world", os.environ.get("WORLD_SIZE"), os.environ.get("MASTER_PORT"))
print(*[state_digest(recipes.network(made, seed, data_dir)) for seed in seeds])
"""
DIGITS = {"frozen": False, "passes": 660, "few": 12, "weights": "none"}


def write_book(folder):
    """A notebook that trains networks of digits and says what they are."""
    given = f"dataset = 'digits'\nseeds = [0, 1]\nlimit = None\ndata_dir = None\nrecipe = {DIGITS}"
    cells = [new_code_cell(given, metadata={"tags": ["parameters"]}), new_code_cell(BOOK)]
    (folder / "notebooks" / "profiles").mkdir(parents=True)
    (folder / "notebooks" / "profiles" / "quick.yaml").write_text("")
    nbformat.write(new_notebook(cells=cells), folder / "notebooks" / "03_x.ipynb")


def said_by_book(output):
    outputs = nbformat.read(output / "notebooks" / "03_x.ipynb", 4).cells[-1].outputs
    return "".join(one.text for one in outputs if one.get("name") == "stdout").splitlines()


def test_two_runs_on_one_store_train_each_network_once_and_agree(tmp_path):
    write_book(tmp_path)
    environment = os.environ | {"INFOCAM_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "infocam_utils", "run", "--notebooks", "notebooks", "--output"]
    how = {"cwd": tmp_path, "env": environment}
    running = [subprocess.Popen([*command, name], **how) for name in ("a", "b")]
    assert [one.wait(timeout=300) for one in running] == [0, 0]
    one, other = (said_by_book(tmp_path / name) for name in ("a", "b"))
    assert one == other
    assert len(set(one[1].split())) == 2
    assert len({name.split("/")[0] for name in contents(tmp_path / "data")}) == 2
    assert not [*(tmp_path / "data" / "cache").glob("*.draft")]


def test_torchruns_processes_train_together_and_the_first_runs_the_notebooks(tmp_path):
    """The networks of `devices=2` to the bit, in the first process's store, where the notebook finds them."""
    write_book(tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = ["-m", "infocam_utils", "run", "--notebooks", "notebooks", "--output", "out"]
    environment = os.environ | {"INFOCAM_DATA": str(tmp_path / "data"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        launcher + run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1 of 1 notebooks done") == 1
    assert said_by_book(tmp_path / "out")[0] == "devices 2 world None None"
    given = {"dataset": "digits", "seeds": [0, 1], "limit": None, "data_dir": None}
    tasks = work.tasks_of("03_x", given | {"recipe": DIGITS | {"devices": 2}})
    trained = contents(tmp_path / "data")
    assert len({name.split("/")[0] for name in trained}) == len(tasks) == 6
    work.compute(tasks[0], tmp_path / "spawned")
    spawned = contents(tmp_path / "spawned")
    assert spawned
    assert spawned.items() <= trained.items()


def test_weights_travel_by_name_and_must_be_the_same_file(tmp_path):
    import torch

    from infocam_utils.classifiers.backbones import classifier

    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    torch.save(classifier("small_resnet", 20, None).state_dict(), tmp_path / "here" / "birds.pt")
    (task,) = birds([0], tmp_path / "here", weights="birds.pt")
    assert task.recipe["weights"] == "birds.pt"
    assert work.check([task], tmp_path / "here") == []
    assert "birds.pt is not there" in work.check([task], tmp_path / "there")[0]
    (tmp_path / "there" / "birds.pt").write_bytes(b"other")
    assert "birds.pt is another file" in work.check([task], tmp_path / "there")[0]


def test_localization_and_frozen_features_are_tasks_too(tmp_path):
    given = {
        "dataset": "minibirds",
        "seeds": [0, 1],
        "limit": 400,
        "data_dir": str(tmp_path),
        "recipe": SMALL,
    }
    both = work.tasks_of("04_x", given | {"region": 3, "paddings": ["same"], "thresholds": 5})
    assert [str(task) for task in both] == [f"evidence of minibirds, softmax, seed {s}" for s in (0, 1)]
    made = work.compute(both[0], tmp_path)
    kinds = {name.rpartition("-")[0] for name in made}
    assert {"network", "features", "evidence"} <= kinds
    assert not kinds & set(work.RAW)
    (frozen,) = work.tasks_of("03_x", given | {"recipe": SMALL | {"frozen": True}})
    assert {name.rpartition("-")[0] for name in work.compute(frozen, tmp_path)} == {"features"}
    assert work.seconds(frozen, tmp_path) > 0
    assert work.tasks_of("02_x", given) == []
