"""The paper's run rehearsed on a drawn set of the official size: made, served, fetched, run, killed, resumed.

    python tests/rehearsal.py --folder FOLDER --weights FILE      (make rehearsal WEIGHTS=FILE)

11,788 drawn pictures of 500x375 in 200 classes, in the official layout, as an archive with its checksum. The
commands are those that claims.yml names for the paper's rows, with fewer passes and one seed. The numbers say
nothing of the paper: what is measured is that the path holds, its time, memory and disk.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

from drawn_cub import write_cub_layout

COUNTS = ([30] * 194 + [29] * 6, [29] * 194 + [28] * 6)  # 5,994 and 5,794, as many as the official split has


def make_archive(folder: Path, per_class: int | None) -> Path:
    """The drawn set as CUB_200_2011.tgz; `per_class` training and as many test images make it small."""
    train, test = COUNTS if per_class is None else ([per_class] * 200, [per_class] * 200)
    write_cub_layout(folder / "CUB_200_2011", train, test, seed=0, num_classes=200, canvas=(500, 375))
    archive = folder / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder / "CUB_200_2011", "CUB_200_2011")
    shutil.rmtree(folder / "CUB_200_2011")
    return archive


def served(folder: Path) -> tuple[http.server.ThreadingHTTPServer, str]:
    """A web server for the folder on this machine, and its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    http.server.SimpleHTTPRequestHandler.log_message = lambda *_: None  # type: ignore[method-assign]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def peak_memory(group: int) -> int:
    """Bytes that the processes of a group hold now."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/statm"):
        try:
            if os.getpgid(int(status.parent.name)) == group:
                total += int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ProcessLookupError):
            continue
    return total


class Rehearsal:
    """Runs commands in a folder and keeps a line for each: what, seconds, peak memory, disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines = folder, [("step", "seconds", "peak memory, MB", "disk, MB")]
        self.environment = {**os.environ, "INFOCAM_DATA": str(folder / "data")}

    def run(self, what: str, *arguments: str, kill_at: str | None = None) -> str:
        """Run `infocam` with arguments; with `kill_at`, SIGKILL to all its processes once that is printed."""
        command = [sys.executable, "-m", "infocam_utils", *arguments]
        start, peak, said = time.monotonic(), 0, []
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=self.environment,
        ) as process:
            done = threading.Event()

            def watch() -> None:
                nonlocal peak
                while not done.wait(0.5):
                    peak = max(peak, peak_memory(process.pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            killed = False
            for line in process.stdout or ():
                said.append(line)
                print(f"  {line.rstrip()}", flush=True)
                if kill_at is not None and kill_at in line and not killed:
                    for pid in children(process.pid):
                        os.kill(pid, signal.SIGKILL)
                    killed = True
            done.set()
            watcher.join()
        code, text = process.returncode, "".join(said)
        if (code == 0) == (kill_at is not None):
            raise SystemExit(f"{what}: ended with {code}\n{text[-3000:]}")
        self.note(what, time.monotonic() - start, peak)
        return text

    def note(self, what: str, seconds: float, peak: int = 0) -> None:
        size = sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file() and not f.is_symlink())
        self.lines.append((what, f"{seconds:.0f}", f"{peak / 1e6:.0f}" if peak else "", f"{size / 1e6:.0f}"))

    def table(self) -> str:
        return "\n".join(
            "| " + " | ".join(line) + " |" for line in (self.lines[0], ("---",) * 4, *self.lines[1:])
        )


def children(pid: int) -> list[int]:
    """A process and all that it started, the youngest first."""
    found, waiting = [], [pid]
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, parent = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(number)
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found[::-1]


def rehearse(folder: Path, weights: str, per_class: int | None, passes: int, crop: int = 224) -> Rehearsal:
    """All steps; what a step leaves is checked before the next."""
    log = Rehearsal(folder)
    start = time.monotonic()
    archive = make_archive(folder / "server", per_class)
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    log.note("drawn and packed", time.monotonic() - start)
    server, address = served(folder / "server")
    log.run(
        "fetched and verified",
        "data",
        "get",
        "cub200",
        "--url",
        f"{address}/{archive.name}",
        "--sha256",
        checksum,
    )
    server.shutdown()
    common = ["--profile", "paper", "-p", "seeds=[0]", "-p", f"weights={weights}", "-p", f"crop={crop}"]
    small = ["-p", "thresholds=10", "-p", "paddings=[full]"]
    out = ["--output", str(folder / "frozen")]
    log.run("03, frozen", "run", "03", *common, *out, "-p", f"passes={passes}")
    log.run("04, frozen, stride 16", "run", "04", *common, *small, *out)
    tuned = ["run", "04", *common, *small, "--output", str(folder / "tuned"), "-p", "frozen=false"]
    tuned += ["-p", f"passes={passes}", "-p", "stride=32", "-p", "batch_size=32"]
    log.run("04, fine-tuned, killed", *tuned, kill_at="epoch 2 of")
    kept = list((folder / "data" / "cache").glob("checkpoint-*.pt"))
    if not kept:
        raise SystemExit("the killed training left no checkpoint")
    text = log.run("04, fine-tuned, the same command again", *tuned)
    if "training, epoch 1 of" in text:
        raise SystemExit("the second run began anew")
    for place, number in (("frozen", "03"), ("frozen", "04"), ("tuned", "04")):
        notes = json.loads((folder / place / "results" / f"{number}.json").read_text())
        if notes["official"] is not False:
            raise SystemExit(f"{place}/{number}.json would count as the paper's own data")
    return log


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="an empty or new folder, about 4 GB")
    parser.add_argument("--weights", default="none", help="state dict of torchvision's MobileNetV2, or none")
    parser.add_argument("--images-per-class", type=int, help="for a small rehearsal")
    parser.add_argument("--passes", type=int, default=18_000, help="images seen in fine-tuning")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if any(given.folder.iterdir()):
        parser.error(f"{given.folder} is not empty; name another folder")
    weights = given.weights if given.weights == "none" else str(Path(given.weights).resolve())
    print(rehearse(given.folder.resolve(), weights, given.images_per_class, given.passes).table())


if __name__ == "__main__":
    main()
