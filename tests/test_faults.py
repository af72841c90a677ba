"""Killed, out of room or denied, at every single change of the file system; then the same call once more.

A scenario runs in a forked child that counts its changes (a file renamed, removed, written, a folder made or
removed) and ends at the n-th without tidying up, before it or, of a write, half through. For every n until
the child comes to its end: what is left can be read or is refused, never half believed, and the next call
ends in the same bytes as if nothing had happened.
"""

import builtins
import contextlib
import errno
import io
import os
import pathlib
import shutil
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from torch import nn

from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.training import fit
from infocam_utils.data.images import Geometry, ImageSet
from infocam_utils.data.store import Store
from infocam_utils.reproduce import results, runner

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
KILLED = 9
FULL, DENIED, READ_ONLY = errno.ENOSPC, errno.EACCES, errno.EROFS
CHANGES = ((os, "replace"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"), (os, "posix_fallocate"))


def fault_at(n, end):
    """Patch every way to change the file system so that the n-th change calls `end`; returns the counter."""
    seen = [0]

    def due():
        seen[0] += 1
        return seen[0] == n

    def ending(function):
        def call(*arguments, **options):
            return end() if due() else function(*arguments, **options)

        return call

    for module, name in CHANGES:
        if hasattr(module, name):
            setattr(module, name, ending(getattr(module, name)))
    opened = io.open

    def opening(file, mode="r", *arguments, **options):
        stream = opened(file, mode, *arguments, **options)
        if isinstance(file, (str, os.PathLike)) and set(mode) & set("wxa"):
            write = stream.write

            def half(content):
                if due():
                    write(content[: len(content) // 2])
                    stream.flush()
                    return end()
                return write(content)

            class Stream:  # a C object's own `write` cannot be replaced
                def __getattr__(self, name):
                    return getattr(stream, name)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    stream.close()

                def __iter__(self):
                    return iter(stream)

            proxy = Stream()
            proxy.write = half
            return proxy
        return stream

    pathlib.io.open = opening
    builtins.open = opening
    return seen


def child(scenario, folder, n, kind):
    """The exit status of a forked child: 0 no n-th change, KILLED, the system's error, or 255 none came."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def fail():
        raise OSError(kind, os.strerror(kind))

    status = 254
    try:
        seen = fault_at(n, (lambda: os._exit(KILLED)) if kind == KILLED else fail)
        scenario(folder)
        status = 0 if seen[0] < n else 255
    except OSError as error:
        status = error.errno or 254
    finally:
        os._exit(status)


def every_point(tmp_path, scenario, state, kind, prepare=lambda folder: None):
    """Run all points; how many there are."""
    whole = tmp_path / "whole"
    whole.mkdir()
    prepare(whole)
    scenario(whole)
    expected = state(whole)
    for n in range(1, 400):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        prepare(folder)
        status = child(scenario, folder, n, kind)
        if status == 0:
            assert state(folder) == expected
            return n - 1
        assert status in ((kind,) if kind == KILLED else (kind, 255)), f"point {n}: status {status}"
        scenario(folder)
        assert state(folder) == expected, f"point {n}"
        litter = [p for p in folder.rglob("*") if p.suffix in (".tmp", ".draft")]
        assert kind == KILLED or not litter, litter
        shutil.rmtree(folder)
    raise AssertionError("more points than were counted on")


# ---- the store


def stored(folder):
    store = Store(folder)
    store.get("one", {"n": 1}, lambda draft: {"x": np.arange(5.0), "y": np.ones(2)})

    def large(draft):
        draft.empty("z", (3,), np.float32)[...] = 7

    store.get("two", {"n": 2}, large)


def entries(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.parent.name[:4] in ("one-", "two-")
    }


@pytest.mark.parametrize("kind", [KILLED, FULL, DENIED, READ_ONLY])
def test_the_store(tmp_path, kind):
    assert every_point(tmp_path, stored, entries, kind) > 10


# ---- results


def written(folder, value=2.0):
    rows = pd.DataFrame({"metric": "accuracy", "unit": "%", "seed": [0, 1], "value": [value, value + 1]})
    results.write("03", rows, parameters={"profile": "quick"}, output_dir=folder)


def values(folder):
    return results.read(folder / "results" / "03.json").rows["value"].tolist()


@pytest.mark.parametrize("kind", [KILLED, FULL, DENIED, READ_ONLY])
def test_results(tmp_path, kind):
    def scenario(folder):
        if (folder / "results" / "03.json").exists():  # what a fault has left: old, new, or refused
            known = [1.0, 2.0], [2.0, 3.0]
            with contextlib.suppress(ValueError):  # refused is not half believed
                assert values(folder) in known
        written(folder)

    assert every_point(tmp_path, scenario, values, kind, prepare=lambda folder: written(folder, 1.0)) >= 4


# ---- a checkpoint


def trained(folder):
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Linear(4, 2), "tiny")
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 255, (12, 3, 8, 8), dtype=np.uint8), torch.arange(12) % 2
    images = ImageSet(pixels, labels, None, 2, list("ab"), torch.arange(12), "twelve")
    how = {"geometry": Geometry(), "epochs": 3, "batch_size": 4, "lr": 0.01, "accelerator": "cpu"}
    fit(model, images, checkpoint=folder / "checkpoint.pt", **how)
    torch.save(model.state_dict(), folder / "model.pt")


def weights(folder):
    return {
        name: value.tolist() for name, value in torch.load(folder / "model.pt", weights_only=True).items()
    }


@pytest.mark.parametrize("kind", [KILLED, FULL])
def test_a_checkpoint(tmp_path, kind):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked child has none of its parent's threads
    try:
        assert every_point(tmp_path, trained, weights, kind) >= 6
    finally:
        torch.set_num_threads(threads)


# ---- a run and its manifest


def executed(plan, partial, kernel_log, environment, watch):
    output = Path(environment["INFOCAM_OUTPUT"])
    rows = pd.DataFrame({"metric": "accuracy", "unit": "%", "seed": [0], "value": [80.0]})
    results.write(plan.name, rows, parameters=plan.in_force, output_dir=output)
    shutil.copy(plan.path, partial)


def made(folder):
    book = new_notebook(cells=[new_code_cell("seeds = [0]", metadata={"tags": ["parameters"]})])
    book.cells[0]["id"] = "a"
    where = folder / "repo" / "notebooks"
    (where / "profiles").mkdir(parents=True)
    (where / "profiles" / "quick.yaml").write_text("")
    nbformat.write(book, where / "01_x.ipynb")


def ran(folder):
    plans = runner.plan(folder=folder / "repo" / "notebooks")
    show = runner.Display(io.StringIO())
    runner.run(plans, folder / "out", name="quick", results=folder / "repo" / "results", show=show)


def done(folder):
    (entry,) = runner.read_manifest(folder / "out" / "manifest.json")["notebooks"].values()
    rows = results.read(folder / "out" / "results" / "01.json").rows["value"].tolist()
    left = sorted(str(p.relative_to(folder / "out")) for p in (folder / "out" / "previous").rglob("*.*"))
    return entry["status"], sorted(entry["files"]), rows, left, (folder / "out" / "index.html").exists()


@pytest.mark.parametrize("kind", [KILLED, FULL])
def test_a_run_that_ends_at_any_point_is_gone_on_with(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(runner, "execute", executed)
    monkeypatch.setattr(
        runner.reports,
        "export_html",
        lambda _, target: target.parent.mkdir(exist_ok=True) or target.write_text("x"),
    )
    assert every_point(tmp_path, ran, done, kind, prepare=made) > 15
