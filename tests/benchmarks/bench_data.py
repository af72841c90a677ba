"""What decoding images once saves: batches from the memory-mapped store against decoding in every epoch.

Both ways give the same batches of network input (checked), on JPEG files of a photograph's size and detail
that are written for the purpose. Seconds are of processor time, which a busy machine changes less than the
clock's.

    python tests/benchmarks/bench_data.py --output data.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infocam_utils.data.images import Geometry, ImageSet, decode, decoded, prepare
from infocam_utils.data.store import Store

BATCH = 64


def write_photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 x 375 pixels with detail at all scales: noise of amplitude 1 / frequency."""
    rng = np.random.default_rng(0)
    frequencies = np.meshgrid(np.fft.fftfreq(500), np.fft.fftfreq(375))  # (375, 500) each
    fall = 1 / np.maximum(np.hypot(*frequencies), 1e-3)
    paths = []
    for number in range(count):
        noise = rng.standard_normal((3, 375, 500))
        smooth = np.fft.ifft2(np.fft.fft2(noise) * fall).real
        pixels = 127 + 60 * smooth / smooth.std((1, 2), keepdims=True)
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(paths[-1], quality=90)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=256, help="how many images")
    parser.add_argument("--size", type=int, default=256, help="side they are squashed to, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the times as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    geometry = Geometry(options.size, options.size * 7 // 8)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photographs(folder, options.count)
        start = time.process_time()
        pixels, _, key = decoded(paths, options.size, Store(folder))
        building = time.process_time() - start
        number = torch.arange(options.count)
        images = ImageSet(pixels, torch.zeros_like(number), None, 1, ["photograph"], number, key)

        def batches(way: str) -> Iterator[Tensor]:
            for batch in number.split(BATCH):
                if way == "store":
                    yield prepare(images.pixels(batch), geometry)
                else:
                    fresh = np.stack([decode(paths[i], options.size)[0] for i in batch])
                    yield prepare(torch.from_numpy(fresh), geometry)

        assert all(torch.equal(a, b) for a, b in zip(batches("store"), batches("files"), strict=True))
        seconds: dict[str, list[float]] = {"store": [], "files": []}
        for way in ["store", "files"] * options.rounds:  # in turns: a busy machine slows both alike
            start = time.process_time()
            for _batch in batches(way):
                pass
            seconds[way].append(time.process_time() - start)

    store, files = (statistics.median(seconds[way]) for way in ("store", "files"))
    print(f"{options.count} JPEG files of 500 x 375 pixels, squashed to {options.size}, ", end="")
    print(f"cropped to {geometry.crop}; {platform.machine()}, 1 thread, torch {torch.__version__}\n")
    print("| batches from | seconds per epoch | images/s | gain |\n|---|---:|---:|---:|")
    print(f"| files, decoded in every epoch | {files:.2f} | {options.count / files:.0f} | 1.0 |")
    print(f"| store, decoded once | {store:.2f} | {options.count / store:.0f} | {files / store:.1f} |")
    won_back = building / (files - store)
    print(f"\nFilling the store took {building:.2f} s, won back after {won_back:.1f} epochs.")
    if options.output is not None:
        record = {"seconds": seconds, "building_seconds": building, "gain": files / store}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
