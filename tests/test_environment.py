"""pyproject.toml is the one source; requirements.lock and environment.yml must agree with it."""

import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONDA_NAME = {"torch": "pytorch"}


def wanted() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = project["dependencies"] + extras["notebooks"] + extras["test"]
    return {r.name.lower(): r for r in map(Requirement, listed)}


def locked() -> dict[str, list[Version]]:
    pins: dict[str, list[Version]] = {}
    for name, pin in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M):
        pins.setdefault(name, []).append(Version(pin))
    return pins


def test_lock_pins_every_dependency_within_its_bounds():
    pins = locked()
    for name, requirement in wanted().items():
        assert name in pins, f"{name} is in pyproject.toml but not in requirements.lock: run make lock"
        for pin in pins[name]:
            assert pin in requirement.specifier, f"{name}=={pin} is outside {requirement}"


def test_lock_is_hashed_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    blocks = re.split(r"(?m)^(?=[a-z])", text)[1:]
    assert len(blocks) > 100
    assert all("--hash=sha256:" in block for block in blocks)


def test_torch_and_torchvision_are_a_pair():
    """torchvision 0.N.p is built for torch 2.(N-15).p; mixed pairs fail at import."""
    pins = locked()
    (torch,), (vision,) = pins["torch"], pins["torchvision"]
    assert torch.major == 2
    assert vision.minor == torch.minor + 15
    assert vision.micro == torch.micro


def test_environment_yml_is_the_same_set():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {r.name.lower(): r for r in map(Requirement, (e for e in entries if isinstance(e, str)))}
    for name, requirement in wanted().items():
        entry = conda.pop(CONDA_NAME.get(name, name), None)
        assert entry is not None, f"{name} is missing from environment.yml"
        assert str(entry.specifier) == str(requirement.specifier), f"{name} differs in environment.yml"
    assert set(conda) == {"python", "pip"}
    assert Version(str(conda["python"].specifier).split(",")[-1].lstrip(">=")) == Version("3.11")


@pytest.mark.parametrize("package", ["torch", "torchvision", "numpy", "numba", "pandas"])
def test_an_environment_made_from_the_lock_has_its_versions(package):
    if not (Path(sys.prefix) / ".ready").exists():
        pytest.skip("this environment was not made by make")
    assert Version(Version(version(package)).public.split("+")[0]) in locked()[package]


def test_the_package_lists_its_names_and_has_no_others():
    import infocam_utils

    assert set(infocam_utils.__all__) <= set(dir(infocam_utils))
    assert all(getattr(infocam_utils, name) is not None for name in infocam_utils.__all__)
    with pytest.raises(AttributeError, match=r"module 'infocam_utils' has no attribute 'PCSoftmax'"):
        infocam_utils.PCSoftmax  # noqa: B018
