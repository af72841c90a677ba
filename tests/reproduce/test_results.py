"""The committed records of real runs recompute from the committed rows of evidence, without a network."""

import json
import math
import multiprocessing
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from infocam_utils.data import store as storage
from infocam_utils.data.store import cached
from infocam_utils.experiments import localize as evidence
from infocam_utils.experiments import localize as scores
from infocam_utils.reproduce import results as records
from infocam_utils.reproduce.results import (
    Record,
    RecordBook,
    bootstrap,
    compare_books,
    exact,
    from_estimate,
    from_seeds,
    merge_books,
    read_book,
)


def book(seeds=(0, 1, 2), shift=0.0, **changes) -> RecordBook:
    fields = {
        "notebook": "demo",
        "profile": "quick",
        "dataset": "digits",
        "parameters": {"rate": 0.1},
    } | changes
    made = RecordBook(seeds=list(seeds), **fields)
    made.measure("digits/accuracy", [90.0 + s + shift for s in seeds], unit="%", tolerance=0.5)
    made.add(exact("digits/entropy", 1.25, "nats"))
    made.add(exact("time/training", 12.0 + shift, "s"))
    return made


def test_interval_over_seeds_is_students_t():
    values = [0.2, 0.5, 0.1, 0.9]
    record = from_seeds("gap", values, seeds=range(4), unit="nats")
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (record.low, record.high) == pytest.approx((low, high), rel=1e-12)
    assert record.n == 4
    assert record.seeds == (0, 1, 2, 3)


def test_a_single_seed_has_no_interval_and_says_so_in_the_file(tmp_path):
    single = RecordBook("demo", "quick", "digits", [7], {})
    record = single.measure("gap", [0.5])
    assert (record.interval, record.low, record.high) == ("none", -math.inf, math.inf)
    path = single.write(tmp_path)
    assert json.loads(path.read_text())["records"][0]["low"] is None
    assert read_book(path).get("gap") == record
    assert record.text == "0.5000"


def test_bootstrap_over_images_agrees_with_the_normal_interval_of_many_images():
    hits = 100.0 * (np.random.default_rng(0).random(4000) < 0.3)
    record = bootstrap("hits", hits, unit="%")
    half = 1.96 * hits.std() / math.sqrt(4000)
    assert record.value == pytest.approx(hits.mean())
    assert (record.high - record.low) / 2 == pytest.approx(half, rel=0.06)
    assert record == bootstrap("hits", hits, unit="%")


def test_bootstrap_over_seeds_and_images_widens_with_the_spread_of_seeds():
    rng = np.random.default_rng(1)
    images = rng.random((1, 500))
    same = bootstrap("same", np.repeat(images, 5, axis=0), seeds=range(5))
    spread = bootstrap("spread", images + np.array([-1, -0.5, 0, 0.5, 1])[:, None], seeds=range(5))
    assert same.high - same.low == pytest.approx(
        bootstrap("one", images).high - bootstrap("one", images).low, rel=0.1
    )
    # Five equally weighted draws out of the offsets have variance 0.5 / 5.
    assert (spread.high - spread.low) / 2 == pytest.approx(1.96 * math.sqrt(0.1), rel=0.1)
    assert spread.values == pytest.approx((images.mean() + np.array([-1, -0.5, 0, 0.5, 1])).tolist())


def test_a_constant_has_an_interval_of_width_zero():
    assert bootstrap("all", np.full(30, 0.1)).high == pytest.approx(0.1)
    assert from_seeds("all", [0.1] * 3, seeds=range(3)).low == pytest.approx(0.1)


def test_an_estimate_becomes_a_record():
    estimate = SimpleNamespace(value=1.0, stderr=0.1, low=0.8, high=1.2, n=100)
    record = from_estimate("mi", estimate, tolerance=0.02)
    assert (record.unit, record.low, record.high, record.n) == ("nats", 0.8, 1.2, 100)
    assert record.interval == "normal over samples"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": math.nan}, "finite, was nan"),
        ({"value": 3.0}, r"3.0 must lie inside its interval \[0.0, 2.0\]"),
        ({"low": math.nan}, "inside its interval"),
        ({"unit": "bits"}, "was 'bits'"),
        ({"interval": "guess"}, "was 'guess'"),
        ({"name": "a//b"}, "slash path"),
        ({"tolerance": -1.0}, "tolerance must be >= 0"),
        ({"n": 0}, "n >= 1"),
        ({"values": (1.0,)}, "1 values need as many seeds, were 0"),
    ],
)
def test_an_impossible_record_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Record(**{"name": "gap", "value": 1.0, "low": 0.0, "high": 2.0} | fields)


def test_values_and_seeds_must_pair():
    with pytest.raises(ValueError, match="2 values for 3 seeds"):
        from_seeds("gap", [1.0, 2.0], seeds=[0, 1, 2])
    with pytest.raises(ValueError, match="0 values"):
        from_seeds("gap", [], seeds=[])
    with pytest.raises(ValueError, match="1 rows for 2 seeds"):
        bootstrap("gap", [[1.0, 2.0]], seeds=[0, 1])
    with pytest.raises(ValueError, match=r"not empty, was \(1, 0\)"):
        bootstrap("gap", [])


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already in the book"):
        book().add(exact("digits/entropy", 1.0))


def test_get_names_what_there_is():
    with pytest.raises(KeyError, match="digits/entropy"):
        book().get("nothing")


def test_books_survive_writing_and_reading(tmp_path):
    made = book()
    with made.clock("training"):
        pass
    with pytest.raises(RuntimeError), made.clock("training"):
        raise RuntimeError
    path = made.write(tmp_path)
    assert path == tmp_path / "records" / "demo.json"
    read = read_book(path)
    assert read.records == made.records
    assert (read.seeds, read.parameters, list(read.times)) == ([0, 1, 2], {"rate": 0.1}, ["training"])
    assert read.provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert os.uname().nodename not in path.read_text()


def test_output_goes_where_the_run_says(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_OUTPUT", str(tmp_path / "run"))
    assert book().write().parent == tmp_path / "run" / "records"
    monkeypatch.delenv("INFOCAM_OUTPUT")
    assert records.output_root().parts[-2:] == ("runs", "interactive")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"records": [{}]}', '{"records": 3, "notebook": "x"}'])
def test_a_file_that_is_no_book_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x.json is not a file of records"):
        read_book(tmp_path / "x.json")


def test_table_shows_one_formatted_row_per_record():
    table = book().table("digits/")
    assert list(table.index) == ["digits/accuracy", "digits/entropy"]
    assert table.loc["digits/accuracy", "value [95 %]"].startswith("91.00 [88.52, 93.48] %")


def test_comparison_is_by_number_within_the_committed_tolerance():
    assert compare_books(book(), book(shift=0.49)) == []  # seconds never count
    (difference,) = compare_books(book(), book(shift=0.51))
    assert "digits/accuracy: committed 91, now 91.51" in difference


def test_comparison_names_what_is_missing_new_or_of_another_run():
    fresh = book(seeds=(3, 4, 5), dataset="mnist")
    fresh.add(exact("extra", 1.0))
    del fresh.records["digits/entropy"]
    found = "\n".join(compare_books(book(), fresh))
    for part in ("dataset: committed 'digits'", "seeds: committed [0, 1, 2]", "digits/entropy: missing",
                 "extra: not among"):  # fmt: skip
        assert part in found


def test_merging_runs_of_other_seeds_equals_one_run_of_all_seeds(tmp_path):
    paths = [book(seeds=[s]).write(tmp_path / str(s)) for s in (0, 1, 2)]
    merged = merge_books(paths[:2] + paths[2:])
    assert merged.get("digits/accuracy") == book().get("digits/accuracy")
    assert merged.seeds == [0, 1, 2]
    assert merged.get("digits/entropy") == exact("digits/entropy", 1.25, "nats")


def test_merging_refuses_what_does_not_belong_together(tmp_path):
    first = book(seeds=[0]).write(tmp_path / "a")
    with pytest.raises(ValueError, match=r"seeds \[0\] are in two"):
        merge_books([first, first])
    with pytest.raises(ValueError, match="mnist"):
        merge_books([first, book(seeds=[1], dataset="mnist").write(tmp_path / "b")])
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_books([])
    other = book(seeds=[1], shift=1.0)
    with pytest.raises(ValueError, match=r"time/training.*differs"):
        merge_books([first, other.write(tmp_path / "c")])
    other.add(exact("extra", 1.0))
    with pytest.raises(ValueError, match="'extra'"):
        merge_books([first, other.write(tmp_path / "c")])


def test_data_root_prefers_the_parameter_then_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_DATA", str(tmp_path / "env"))
    assert records.data_root(tmp_path / "given") == tmp_path / "given"
    assert records.data_root() == tmp_path / "env"
    monkeypatch.delenv("INFOCAM_DATA")
    assert records.data_root().name == "data"
    monkeypatch.setattr(storage, "checkout", lambda: None)
    assert records.data_root() == Path.home() / ".cache" / "infocam"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = records.atomic_write(tmp_path / "a" / "x.txt", "old")
    with pytest.raises(FileNotFoundError), storage.replacing(path) as temporary:
        temporary.write_text((path.parent / "missing").read_text())
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x.txt"]


def test_a_cache_is_keyed_by_everything_in_the_key(tmp_path):
    def get(key):
        return cached("square", key, lambda: {"x": torch.tensor(key["n"] ** 2)}, tmp_path)["x"].item()

    assert [get({"n": 2, "m": 1}), get({"n": 3, "m": 1}), get({"m": 1, "n": 2})] == [4, 9, 4]
    assert len(list(tmp_path.glob("square-*.pt"))) == 2


def test_a_cached_view_does_not_store_what_it_is_a_view_of(tmp_path):
    cached("view", {}, lambda: {"x": torch.zeros(100_000)[:10]}, tmp_path)
    assert next(tmp_path.glob("*.pt")).stat().st_size < 10_000


@pytest.mark.parametrize("damage", [b"", b"not a zip", None])
def test_a_damaged_cache_file_is_made_again(tmp_path, damage):
    def get():
        return cached("ones", {}, lambda: {"x": torch.ones(1000)}, tmp_path)["x"]

    get()
    path = next(tmp_path.glob("*.pt"))
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    assert torch.equal(get(), torch.ones(1000))
    assert torch.load(path, weights_only=True)["x"].sum() == 1000


def test_a_key_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(TypeError, match="cache key of 'ones'"):
        cached("ones", {"path": Path("x")}, dict, tmp_path)
    with pytest.raises(TypeError, match="cache key of 'ones'"):
        cached("ones", {"rate": math.nan}, dict, tmp_path)


def _fill(folder, started):
    def make():
        started.put(os.getpid())
        time.sleep(0.3)
        return {"x": torch.ones(3)}

    cached("shared", {}, make, folder)


def test_two_processes_do_the_work_once(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path, started)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    started.get(timeout=5)
    assert started.empty()


def test_fingerprint_follows_the_code_not_its_layout(tmp_path):
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    a.write_text("x = 1")
    b.write_text("y = 1")
    before = records.fingerprint(a, b)
    assert before == records.fingerprint(str(a), b)
    b.write_text('"""What y is."""\ny=1  # one\n')
    assert records.fingerprint(a, b) == before
    b.write_text("y = 2")
    assert records.fingerprint(a, b) != before
    assert records.fingerprint(storage) == records.fingerprint(storage.__file__)


def test_progress_is_a_json_line_or_silence(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("INFOCAM_PROGRESS", raising=False)
    records.report_progress("epoch", 1, 2)
    monkeypatch.setenv("INFOCAM_PROGRESS", str(tmp_path / "p"))
    records.report_progress("epoch", 1, 2)
    records.report_progress("done")
    lines = [json.loads(line) for line in (tmp_path / "p").read_text().splitlines()]
    assert lines == [
        {"text": "epoch", "done": 1, "total": 2},
        {"text": "done", "done": None, "total": None},
    ]
    assert capsys.readouterr() == ("", "")


def test_provenance_has_no_git_outside_a_checkout(monkeypatch):
    assert storage.git_commit() is None or len(storage.git_commit().split("+")[0]) == 40
    monkeypatch.setattr(storage, "checkout", lambda: None)
    assert records.provenance()["commit"] is None


RUN = Path(__file__).parents[1] / "results" / "cub-40-photos-stride16"


@pytest.fixture(scope="module")
def rows() -> tuple[evidence.Evidence, evidence.Evidence]:
    folder = RUN / "evidence"
    return tuple(evidence.load(next(folder.glob(f"*-{part}-seed0.npz"))) for part in ("test", "heldout"))


@pytest.mark.parametrize("metric", ["gt_known", "top1_loc"])
def test_localization_of_the_first_seed_recomputes_from_its_rows(rows, metric):
    book = read_book(RUN / "04_infocam_localization.json")
    test, heldout = rows
    compared = 0
    for variant in (v.name for v in test.variants if v.kind == "cam"):
        record = book.get(f"cub-40-photos/{variant}/{metric}")
        assert record.seeds[0] == 0
        recomputed = 100 * scores.hits(test, heldout, variant, metric).mean()
        assert record.values[0] == pytest.approx(recomputed, abs=1e-9), variant
        compared += 1
    assert compared == 16


def test_half_of_the_test_images_choose_and_the_others_are_scored(rows):
    test, heldout = rows
    assert len(test) + len(heldout) == 1108
    assert not set(test.ids) & set(heldout.ids)
