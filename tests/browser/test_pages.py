"""The pages that need no kernel, in a browser: they compute what the package computes, and fit a phone."""

import json

import nbformat
import pytest
import torch
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image
from torch import nn

from infocam_utils import cam
from infocam_utils.experiments import explorer
from infocam_utils.localization import iou_with_truth, pixel_boxes
from infocam_utils.reproduce import report

SIDE = 64


@pytest.fixture(scope="module")
def birds():
    """Two images of three classes, features in whole 255ths so that the page has them exactly."""
    made = torch.Generator().manual_seed(3)
    features = torch.randint(0, 256, (2, 6, 8, 8), generator=made).float() / 255
    features[:, :, 0, 0], features[:, :, 7, 7] = 0.0, 1.0
    torch.manual_seed(5)
    head, labels = nn.Linear(6, 3), [1, 2]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 48.0], [20.0, 4.0, 60.0, 60.0]])
    pictures = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=made, dtype=torch.uint8)
    known = explorer.payload(pictures, features, head, labels, boxes, ["robin", "house_wren", "owl"], 0.4)
    return features, head, torch.tensor(labels), boxes, known


@pytest.fixture
def shown(page, birds, tmp_path):
    (tmp_path / "explorer.html").write_text(explorer.page(birds[-1]), encoding="utf-8")
    page.goto(f"file://{tmp_path}/explorer.html")
    page.wait_for_function("window.state")
    return page


def move(page, control, value):
    page.locator(f"#{control}").evaluate(
        "(element, value) => { element.value = value; element.dispatchEvent(new Event('input')) }", str(value)
    )
    return json.loads(page.evaluate("JSON.stringify(window.state)"))


@pytest.mark.parametrize("against", ["least_likely", "runner_up", "others", 0])
@pytest.mark.parametrize("image", [0, 1])
def test_the_page_computes_what_the_package_computes(shown, birds, image, against):
    features, head, labels, boxes, _ = birds
    move(shown, "image", image)
    move(shown, "against", against)
    move(shown, "threshold", 0.55)
    state = move(shown, "gauge", 1.5)
    turned = cam.with_common_vector(head, 1.5)
    one, y = features[[image]], labels[[image]]
    logits = turned(one.mean((2, 3)))
    for name, rival in (("cam", None), ("info", against)):
        drawn = cam.info_cam(one, turned.weight, y, rival, logits)
        expected = pixel_boxes(drawn, SIDE, [0.55])[:, 0]
        assert state[name]["box"] == expected[0].tolist()
        share = float(iou_with_truth(expected[:, None], boxes[[image]])[0, 0])
        assert state[name]["iou"] == pytest.approx(share, abs=1e-6)
        assert state[name]["mean"] == pytest.approx(float(drawn.mean()), abs=1e-4)
    assert state["probabilities"] == pytest.approx(logits.softmax(1)[0].tolist(), abs=1e-5)


def test_the_common_vector_moves_cam_alone(shown):
    before = move(shown, "gauge", 0)
    pictures = [shown.locator(f"#{name}").evaluate("c => c.toDataURL()") for name in ("cam", "infocam")]
    after = move(shown, "gauge", 4)
    moved = [shown.locator(f"#{name}").evaluate("c => c.toDataURL()") for name in ("cam", "infocam")]
    assert after["cam"]["mean"] != pytest.approx(before["cam"]["mean"], abs=0.1)
    assert after["info"]["mean"] == pytest.approx(before["info"]["mean"], abs=1e-4)
    assert after["probabilities"] == pytest.approx(before["probabilities"], abs=1e-5)
    assert pictures[0] != moved[0]


def test_a_move_is_answered_within_150_milliseconds(shown):
    spent = """() => { const start = performance.now();
      for (let i = 0; i < 20; i++) { document.getElementById('gauge').value = i / 5; change(); }
      return (performance.now() - start) / 20 }"""
    assert min(shown.evaluate(spent) for _ in range(3)) < 150


def test_the_class_itself_is_no_rival(shown):
    assert shown.locator("#against option:disabled").all_inner_texts() == ["house wren"]
    move(shown, "against", 2)
    move(shown, "image", 1)  # an owl, whose rival cannot be the owl
    assert shown.locator("#against").input_value() == "least_likely"


@pytest.mark.parametrize("width", [390, 1200])
def test_the_explorer_and_the_report_fit_the_screen(page, birds, tmp_path, width):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "04_explorer.html").write_text(explorer.page(birds[-1]), encoding="utf-8")
    Image.new("RGB", (1500, 700), "white").save(tmp_path / "figures" / "04_wide.png")
    about = {"status": "done", "seconds": 3, "profile": "quick", "files": ["html/04.html"]}
    manifest = {
        "name": "quick",
        "command": f"infocam run {'--set name=value ' * 20}",
        "started": "a",
        "finished": "b",
        "provenance": {"platform": "Linux", "cpu": "a" * 80, "gpu": None},
        "notebooks": {"04_infocam_localization": about},
    }
    report.write_index(tmp_path, manifest, tmp_path / "repo" / "results")
    page.set_viewport_size({"width": width, "height": 800})
    for file in ("index.html", "figures/04_explorer.html"):
        page.goto(f"file://{tmp_path}/{file}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.goto(f"file://{tmp_path}/index.html")
    page.locator("iframe").scroll_into_view_if_needed()
    inside = page.frame_locator("iframe").locator("#cam-text")
    inside.wait_for()
    assert "IoU" in inside.inner_text(timeout=5000)


def test_equations_of_an_exported_notebook_are_drawn(page, tmp_path):
    cell = new_markdown_cell("$$\\underbrace{\\mathbb{E} f_y - \\log Z}_{\\text{bound}} \\le I(X;Y)$$")
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "01_x.ipynb")
    report.export_html(tmp_path / "01_x.ipynb", tmp_path / "01_x.html")
    page.goto(f"file://{tmp_path}/01_x.html")
    box = page.locator("math").bounding_box()
    assert box is not None
    assert box["width"] > 60
    assert box["height"] > 20
