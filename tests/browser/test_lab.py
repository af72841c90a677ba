"""The notebooks as a reader has them: JupyterLab, Run All, every control moved, and the picture follows."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from infocam_utils.reproduce import runner
from infocam_utils.reproduce.cli import recipe_fields


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab without a token, on a port of this machine alone: its folder and address."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "INFOCAM_OUTPUT",
        "INFOCAM_DATA",
    )
    environment = os.environ | {name: str(folder / name.lower()) for name in places}
    options = {"ip": "127.0.0.1", "port": port, "open_browser": False, "root_dir": folder, "allow_root": True}
    settings = [f"--ServerApp.{name}={value}" for name, value in options.items()]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        *settings,
        "--IdentityProvider.token=",
        "--expose-app-in-browser",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/lab", timeout=5).close()
            break
        except OSError:
            time.sleep(0.25)
    yield folder, address
    server.terminate()
    server.wait(20)


def opened(chromium, lab, name):
    """The notebook with the smoke profile's parameters, in the browser and run to its end."""
    folder, address = lab
    (plan,) = runner.plan([name], "smoke", recipe_fields=recipe_fields())
    source, content = plan.path, nbformat.read(plan.path, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in plan.in_force.items())
    nbformat.write(content, folder / source.name)
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    trouble = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto(f"{address}/lab/tree/{source.name}?reset")
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel", timeout=60_000
    )
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    cells = page.evaluate(
        """async () => {
        const model = jupyterapp.shell.currentWidget.content.model;
        const outputs = (cell) => [...Array(cell.outputs.length).keys()].map((o) => cell.outputs.get(o));
        for (let i = 0; i < 1200; i++) {
          await new Promise((resolve) => setTimeout(resolve, 250));
          const code = [...model.cells].filter((c) => c.type === 'code' && c.sharedModel.getSource());
          if (code.some((cell) => outputs(cell).some((o) => o.type === 'error'))) return -1;
          if (code.every((cell) => cell.executionCount)) return code.length;
        }
        return 0 }"""
    )
    assert cells > 10, "a cell failed" if cells < 0 else "cells that were never run"
    return page, trouble


@pytest.mark.parametrize("name", ["01", "03"])
def test_every_slider_changes_its_picture(chromium, lab, name):
    page, trouble = opened(chromium, lab, name)
    page.evaluate("jupyterapp.commands.execute('notebook:move-cursor-up')")
    sliders = page.locator(".widget-slider .noUi-handle, .jupyter-widgets .slider-container [role=slider]")
    area = page.locator(".jp-OutputArea-output:has(.widget-slider)")
    area.first.scroll_into_view_if_needed()
    assert sliders.count() >= 1
    picture = area.locator("img").first
    for number in range(sliders.count()):
        before = picture.get_attribute("src")
        start = time.monotonic()
        sliders.nth(number).focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "([image, before]) => image.isConnected ? image.src !== before : true",
            arg=[picture.element_handle(), before],
            timeout=10_000,
        )
        assert time.monotonic() - start < 10
        page.wait_for_timeout(300)
        assert picture.get_attribute("src") != before
    assert not [text for text in trouble if not re.search("favicon|source map", text)]
    page.close()


def test_notebook_04_has_its_page_with_sliders(chromium, lab):
    page, trouble = opened(chromium, lab, "04")
    frame = page.frame_locator("iframe[title='CAM beside infoCAM']")
    page.locator("iframe[title='CAM beside infoCAM']").scroll_into_view_if_needed()
    gauge, cam, info = (frame.locator(f"#{name}") for name in ("gauge", "cam", "infocam"))
    gauge.wait_for(timeout=20_000)
    before = [canvas.evaluate("c => c.toDataURL()") for canvas in (cam, info)]
    gauge.evaluate("e => { e.value = 4; e.dispatchEvent(new Event('input')) }")
    after = [canvas.evaluate("c => c.toDataURL()") for canvas in (cam, info)]
    assert before[0] != after[0]
    assert not trouble
    page.close()
