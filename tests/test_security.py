"""Hostile files: nothing in them is run, nothing outside their folder is touched."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_cub import write_cub_layout

from infocam_utils.classifiers.backbones import classifier
from infocam_utils.data.sets import CUB
from infocam_utils.data.store import Store, recording
from infocam_utils.explain import stock_classifier

ROOT = Path(__file__).parents[1]


class Bomb:
    """Writes a file as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """Where a bomb would write, and a file of weights that is one."""
    mark, file = tmp_path / "it-went-off", tmp_path / "weights.pt"
    torch.save({"layer": Bomb(mark)}, file)
    yield mark, file
    assert not mark.exists()


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_no_code_in_weights_is_run(trap):
    _, file = trap
    with pytest.raises(ValueError, match=re.escape(str(file))):
        classifier("small_resnet", 3, str(file))
    with pytest.raises(ValueError, match=r"weights\.pt holds no weights"):
        stock_classifier("resnet18", file, ["a", "b"])


def test_no_code_in_an_entry_of_the_store_is_run(trap, tmp_path):
    mark, _ = trap
    store = Store(tmp_path)
    with recording() as used:
        store.get("ones", {"n": 1}, lambda draft: {"x": np.ones(2)})
    np.save(used[0] / "x.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    assert store.get("ones", {"n": 1}, lambda draft: {"x": np.ones(2)})["x"].tolist() == [1, 1]


@pytest.mark.parametrize("file", ["../../secret.jpg", "/etc/secret.jpg"])
def test_a_list_cannot_name_a_picture_outside_its_folder(tmp_path, file):
    write_cub_layout(tmp_path / "birds", 4, 4, seed=0, num_classes=2)
    listing = tmp_path / "birds" / "images.txt"
    first, *rest = listing.read_text().splitlines()
    listing.write_text("\n".join([f"{first.split()[0]} {file}", *rest]) + "\n")
    with pytest.raises(ValueError, match="leads out of its folder"):
        CUB(tmp_path / "birds", "train")


def test_the_page_names_tests_that_exist():
    for path in re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text()):
        assert (ROOT / path).exists(), path
