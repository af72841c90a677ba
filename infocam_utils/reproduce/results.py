"""A measured value with its interval, seeds and provenance; written, read, compared and merged as JSON."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy.special import stdtrit

from infocam_utils.data.store import (
    atomic_write,
    output_root,
    provenance,
)

if TYPE_CHECKING:  # pandas takes a second to import; reading a ledger does not need it
    import pandas as pd


UNITS = ("nats", "%", "s", "")
INTERVALS = ("t over seeds", "normal over samples", "bootstrap over images", "exact", "none")


class EstimateLike(Protocol):
    """What `from_estimate` needs of `information.Estimate`."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Record:
    """One number, how sure it is, and how far another machine's may be from it.

    Parameters
    ----------
    name : slash path, such as ``minibirds/pc/per_class_accuracy``
    value, low, high : the number and its 95 % interval, in `unit` ("nats", "%", "s" or "")
    n : how many samples, images or seeds the value is a mean of
    interval : how the interval was made, one of `INTERVALS`; "none" has infinite ends
    seeds, values : the seeds and the value each gave, in the same order, when there are several runs
    tolerance : how far the value may be off on another machine, in `unit`

    Raises
    ------
    ValueError
        When a field cannot be: a value that is not finite or outside its interval, an unknown unit.

    >>> Record("gap", 0.5, 0.25, 0.75, unit="nats", n=3, interval="t over seeds").text
    '0.5000 [0.2500, 0.7500] nats'
    """

    name: str
    value: float
    low: float
    high: float
    unit: str = ""
    n: int = 1
    interval: str = "none"
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        problem = None
        if not self.name or any(not part or part != part.strip() for part in self.name.split("/")):
            problem = "the name must be a slash path without empty parts"
        elif not math.isfinite(self.value):
            problem = f"the value must be finite, was {self.value}"
        elif not self.low <= self.value <= self.high:
            problem = f"the value {self.value} must lie inside its interval [{self.low}, {self.high}]"
        elif self.unit not in UNITS:
            problem = f"the unit must be one of {UNITS}, was {self.unit!r}"
        elif self.interval not in INTERVALS:
            problem = f"the interval must be one of {INTERVALS}, was {self.interval!r}"
        elif self.tolerance < 0 or self.n < 1:
            problem = f"tolerance must be >= 0 and n >= 1, were {self.tolerance} and {self.n}"
        elif self.values and len(self.seeds) != len(self.values):
            problem = f"{len(self.values)} values need as many seeds, were {len(self.seeds)}"
        if problem:
            raise ValueError(f"record {self.name!r}: {problem}")

    @property
    def text(self) -> str:
        """Value, interval and unit as people read them."""
        digits = {"%": 2, "s": 1}.get(self.unit, 4)
        ends = f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if math.isfinite(self.high) else ""
        return f"{self.value:.{digits}f}{ends} {self.unit}".rstrip()


def from_seeds(
    name: str, values: Iterable[float], seeds: Sequence[int], unit: str = "", tolerance: float = 0.0
) -> Record:
    """Mean over seeds with Student's t interval (95 %); a single seed has no interval.

    >>> from_seeds("accuracy", [80.0, 82.0, 84.0], seeds=[0, 1, 2], unit="%").text
    '82.00 [77.03, 86.97] %'
    """
    numbers = [float(v) for v in values]
    if not numbers or len(numbers) != len(seeds):
        raise ValueError(
            f"record {name!r}: got {len(numbers)} values for {len(seeds)} seeds; give one per seed"
        )
    mean, n = float(np.mean(numbers)), len(numbers)
    half = (
        math.inf if n == 1 else float(stdtrit(n - 1, 0.975)) * float(np.std(numbers, ddof=1)) / math.sqrt(n)
    )
    kind = "none" if n == 1 else "t over seeds"
    return Record(
        name,
        mean,
        mean - half,
        mean + half,
        unit,
        n,
        kind,
        tuple(int(s) for s in seeds),
        tuple(numbers),
        tolerance,
    )


def from_estimate(name: str, estimate: EstimateLike, unit: str = "nats", tolerance: float = 0.0) -> Record:
    """An `information.Estimate` (mean over held-out samples, normal interval) as a record."""
    return Record(
        name,
        estimate.value,
        estimate.low,
        estimate.high,
        unit,
        estimate.n,
        "normal over samples",
        tolerance=tolerance,
    )


def exact(name: str, value: float, unit: str = "", tolerance: float = 0.0) -> Record:
    """A number that has no sampling error: a quadrature, a count, a property of the code."""
    return Record(name, float(value), float(value), float(value), unit, 1, "exact", tolerance=tolerance)


def bootstrap(
    name: str,
    per_image: Any,
    unit: str = "",
    *,
    seeds: Sequence[int] = (),
    tolerance: float = 0.0,
    resamples: int = 2000,
    seed: int = 0,
) -> Record:
    """Mean of `per_image` (S, N) or (N,), in `unit`, with a percentile interval over images and seeds.

    Each resample draws N images and, when S > 1, S seeds, both with replacement: the images are shared by
    the seeds, so they are drawn once per resample (a crossed, not a nested, bootstrap). For a paired
    comparison pass the differences.

    >>> bootstrap("hit", [[100.0, 0.0] * 200], unit="%").interval
    'bootstrap over images'
    """
    table = np.atleast_2d(np.asarray(per_image, dtype=np.float64))  # (S, N)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(
            f"record {name!r}: per_image must be (seeds, images) and not empty, was {table.shape}"
        )
    runs, images = table.shape
    if seeds and len(seeds) != runs:
        raise ValueError(f"record {name!r}: got {runs} rows for {len(seeds)} seeds; give one row per seed")
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 100):  # in blocks, so that 10,000 images stay at 8 MB
        block = slice(start, min(start + 100, resamples))
        size = block.stop - block.start
        weights = rng.multinomial(images, np.full(images, 1 / images), size=size)  # (block, N)
        per_run = weights @ table.T / images  # (block, S)
        picked = rng.integers(runs, size=(size, runs))
        means[block] = np.take_along_axis(per_run, picked, axis=1).mean(1)
    value = float(table.mean())
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
    values = tuple(float(v) for v in table.mean(1)) if seeds else ()
    # Rounding alone can put a constant's mean outside its interval by one bit.
    return Record(name, value, min(low, value), max(high, value), unit, images, "bootstrap over images",
                  tuple(int(s) for s in seeds), values, tolerance)  # fmt: skip


@dataclass
class RecordBook:
    """The records of one notebook run: `add` and `measure` while it runs, `write` at its end.

    >>> book = RecordBook("demo", "smoke", "digits", seeds=[0, 1], parameters={})
    >>> with book.clock("training"):
    ...     record = book.measure("digits/accuracy", [90.0, 92.0], unit="%", tolerance=1.0)
    >>> book.get("digits/accuracy").value
    91.0
    """

    notebook: str
    profile: str
    dataset: str
    seeds: Sequence[int]
    parameters: Mapping[str, Any]
    records: dict[str, Record] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def add(self, record: Record) -> Record:
        """Keep `record`; a name can be taken once, so that no number silently replaces another."""
        if record.name in self.records:
            raise ValueError(
                f"record {record.name!r} is already in the book of {self.notebook!r}; rename one"
            )
        self.records[record.name] = record
        return record

    def measure(self, name: str, values: Iterable[float], unit: str = "", tolerance: float = 0.0) -> Record:
        """`from_seeds` with this book's seeds, added."""
        return self.add(from_seeds(name, values, self.seeds, unit, tolerance))

    @contextlib.contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to ``times[name]``, also when the body fails."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start

    def get(self, name: str) -> Record:
        if name not in self.records:
            raise KeyError(
                f"no record {name!r} in the book of {self.notebook!r}; it has {sorted(self.records)}"
            )
        return self.records[name]

    def table(self, prefix: str = "") -> pd.DataFrame:
        """The records whose name starts with `prefix`, one row each, formatted for reading."""
        import pandas as pd

        rows = [(r.name, r.text, r.n, r.interval) for r in self.records.values() if r.name.startswith(prefix)]
        return pd.DataFrame(rows, columns=["record", "value [95 %]", "n", "interval"]).set_index("record")

    def write(self, output_dir: str | Path | None = None) -> Path:
        """Write ``<out>/records/<notebook>.json`` atomically and return its path."""
        path = output_root(output_dir) / "records" / f"{self.notebook}.json"
        content = {
            "notebook": self.notebook, "profile": self.profile, "dataset": self.dataset,
            "seeds": [int(s) for s in self.seeds], "parameters": dict(self.parameters),
            "records": [_to_json(r) for r in self.records.values()],
            "times": {name: round(seconds, 2) for name, seconds in self.times.items()},
            "provenance": self.provenance or provenance(),
        }  # fmt: skip
        return atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _to_json(record: Record) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in asdict(record).items()}


def read_book(path: str | Path) -> RecordBook:
    """Read what `RecordBook.write` wrote.

    Raises
    ------
    ValueError
        When the file is not a book of records, with the reason.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        entries = content.pop("records")
        book = RecordBook(**content)
        for entry in entries:
            entry["low"] = -math.inf if entry["low"] is None else entry["low"]
            entry["high"] = math.inf if entry["high"] is None else entry["high"]
            book.add(Record(**entry | {"seeds": tuple(entry["seeds"]), "values": tuple(entry["values"])}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of records ({error}); run its notebook again") from error
    return book


def compare_books(committed: RecordBook, fresh: RecordBook) -> list[str]:
    """Differences that matter, as sentences: records missing or new, values further apart than committed.

    Seconds are a property of the machine and are left out; a tolerance of 0 still allows 1e-9 relative.
    """
    found = [
        f"{what}: committed {old!r}, now {new!r}"
        for what, old, new in (
            ("dataset", committed.dataset, fresh.dataset),
            ("profile", committed.profile, fresh.profile),
            ("seeds", list(committed.seeds), list(fresh.seeds)),
        )
        if old != new
    ]
    found += [
        f"{name}: missing from the fresh records" for name in committed.records.keys() - fresh.records.keys()
    ]
    found += [
        f"{name}: not among the committed records" for name in fresh.records.keys() - committed.records.keys()
    ]
    for name, old in committed.records.items():
        new = fresh.records.get(name)
        if new is None or old.unit == "s":
            continue
        allowed = max(old.tolerance, 1e-9 * abs(old.value), 1e-12)
        if new.unit != old.unit:
            found.append(f"{name}: unit was {old.unit!r}, now {new.unit!r}")
        elif abs(new.value - old.value) > allowed:
            found.append(
                f"{name}: committed {old.value:.6g}, now {new.value:.6g}, more than {allowed:.2g} apart"
            )
    return sorted(found)


def merge_books(paths: Iterable[str | Path]) -> RecordBook:
    """One book out of runs that differ in their seeds only, as several machines give them.

    A record with one value per seed is merged into the mean over all seeds; any other must be the same in
    every book.
    """
    books = [read_book(path) for path in paths]
    if not books:
        raise ValueError("nothing to merge: no record files were given")
    first = books[0]
    for book in books[1:]:
        if (book.notebook, book.profile, book.dataset) != (first.notebook, first.profile, first.dataset):
            raise ValueError("only runs of one notebook, profile and dataset merge; these differ: "
                             f"{book.notebook}, {book.profile}, {book.dataset}")  # fmt: skip
        if set(book.seeds) & set(first.seeds):
            raise ValueError(f"seeds {sorted(set(book.seeds) & set(first.seeds))} are in two of the books")
        if book.records.keys() != first.records.keys():
            raise ValueError(
                f"records {sorted(book.records.keys() ^ first.records.keys())} are not in every book"
            )
    seeds = [s for book in books for s in book.seeds]
    merged = RecordBook(
        first.notebook, first.profile, first.dataset, seeds, dict(first.parameters) | {"seeds": seeds},
        times={k: sum(b.times.get(k, 0.0) for b in books) for k in first.times}, provenance=first.provenance,
    )  # fmt: skip
    for name, record in first.records.items():
        parts = [book.records[name] for book in books]
        if record.interval in ("t over seeds", "none"):
            values = [v for part in parts for v in part.values]
            merged.add(
                from_seeds(name, values, [s for p in parts for s in p.seeds], record.unit, record.tolerance)
            )
        elif all(part == record for part in parts):
            merged.add(record)
        else:
            raise ValueError(
                f"record {name!r} ({record.interval}) differs between books and has no values per seed"
            )
    return merged
