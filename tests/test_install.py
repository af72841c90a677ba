"""The wheel, in an environment that has nothing but its own requirements."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
USE = """
import numpy as np, torch
from PIL import Image
from torch import nn
import infocam_utils
from infocam_utils import InfoCAM, PCSoftmaxLoss, PriorShift, class_prior, mutual_information

torch.manual_seed(0)
images, labels = torch.randn(30, 3, 32, 32), torch.tensor([0, 0, 1] * 10)
images += labels[:, None, None, None]
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
loss, adam = PCSoftmaxLoss(class_prior(labels, 2)), torch.optim.Adam(model.parameters(), 0.05)
values = []
for _ in range(10):
    adam.zero_grad()
    value = loss(model(images), labels)
    value.backward()
    adam.step()
    values.append(float(value))
assert values[-1] < values[0] - 0.1, values
assert mutual_information(model(images), labels, loss.prior).value > 0.1
Image.fromarray(np.full((40, 50, 3), 200, np.uint8)).save("photo.png")
found = InfoCAM(model, against="robin", classes=["robin", "sparrow"])("photo.png", "sparrow")
found.save("explained.png")
print(infocam_utils.__version__, found.sentences()[0])
try:
    import pandas
except ImportError:
    print("no pandas")
"""


def closure(requirements: list[str], seen: dict[str, Path]) -> dict[str, Path]:
    """All installed distributions that requirements need without extras, each with its folder."""
    for wanted in map(Requirement, requirements):
        key = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if key not in seen and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            try:
                found = distribution(key)
            except PackageNotFoundError:  # for another platform
                continue
            seen[key] = Path(str(found.locate_file("")))
            closure(found.requires or [], seen)
    return seen


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """A folder with the wheel unpacked and links to what it requires, and to nothing else."""
    work = tmp_path_factory.mktemp("wheel")
    build = "import hatchling.build as b, sys; print(b.build_wheel(sys.argv[1]))"
    made = subprocess.run(
        [sys.executable, "-c", build, str(work)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wheel, site = work / made.stdout.split()[-1], work / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (info,) = site.glob("infocam-*.dist-info")
    about = Metadata.from_email((info / "METADATA").read_bytes(), validate=True)
    for name, folder in closure([str(r) for r in about.requires_dist or []], {}).items():
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if (folder / top).exists() and not (site / top).exists():
                (site / top).symlink_to(folder / top)
    return work, wheel, site


def run(core, *words):
    work, _, site = core
    start = f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv = {['infocam', *words]!r}\n"
    code = USE if not words else "from infocam_utils.reproduce.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_says_what_it_is(core):
    _, wheel, site = core
    (info,) = site.glob("infocam-*.dist-info")
    about = Metadata.from_email((info / "METADATA").read_bytes(), validate=True)
    assert about.name == "infocam"
    assert "PC-softmax" in (about.description or "")
    names = {Requirement(str(r)).name for r in about.requires_dist or [] if not r.marker}
    assert "jupyterlab" not in names
    assert {"torch", "numpy"} <= names
    assert (site / "infocam_utils" / "py.typed").exists()
    assert wheel.stat().st_size < 500_000
    assert not [p for p in site.iterdir() if p.name in ("tests", "notebooks", "results")]


def test_the_core_trains_reads_and_explains_with_its_own_requirements_alone(core):
    done = run(core)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert "sparrow against robin: log odds" in said[0]
    assert said[1:] == ["no pandas"]
    assert (core[0] / "explained.png").stat().st_size > 10_000


def test_commands_that_need_more_say_what_brings_it(core):
    assert "explain" in run(core, "--help").stdout
    done = run(core, "run", "01")
    assert done.returncode == 1
    assert "pip install 'infocam[notebooks]'" in done.stderr
