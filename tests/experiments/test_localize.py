"""The localization experiment: evidence against a plain computation by image, its rows against counts."""

import io
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from infocam_utils.cam import common_share, info_cam
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.data import minibirds
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.data.sets import Official
from infocam_utils.data.store import Store
from infocam_utils.experiments import localize
from infocam_utils.experiments.localize import Evidence, Variant, bootstrap, collect, load, quantise
from infocam_utils.experiments.recipe import recipe
from infocam_utils.information import pointwise_mutual_information
from infocam_utils.localization import boxes_from_maps, iou_with_truth, max_box_acc_v2
from infocam_utils.official import inclusive_iou, official_iou, official_running_average, official_threshold

CLASSES, SIDE = 4, 24
THRESHOLDS = [0.1, 0.3, 0.5, 0.7]
GEOMETRY = Geometry(resize=20, crop=16)
PRIOR = torch.full((CLASSES,), 1 / CLASSES)
CAM, OTHERS = Variant("cam", "a"), Variant("infocam", "a", "others")
LEAST = Variant("infocam", "b", "least_likely", region=2, padding="full")
NORM, WHOLE, HALF = Variant("feature_norm"), Variant("whole_image"), Variant("centre_box", fraction=0.5)
VARIANTS = (CAM, OTHERS, LEAST, NORM, WHOLE, HALF)


class Counted(nn.Module):
    """Features that count the images they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return self.layer(x).relu()


def make_images(n: int = 11, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)
    corner = rng.integers(0, 10, (n, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.integers(6, 14, (n, 2))], 1)).float()
    names = [str(c) for c in range(CLASSES)]
    labels = torch.from_numpy(rng.integers(0, CLASSES, n))
    return ImageSet(pixels, labels, boxes, CLASSES, names, torch.arange(n) * 3 + 1, f"made {n} {seed}")


def make_model() -> tuple[Classifier, dict[str, nn.Linear]]:
    torch.manual_seed(0)
    heads = {"a": nn.Linear(6, CLASSES), "b": nn.Linear(6, CLASSES, bias=False)}
    return Classifier(Counted(), heads["a"]), heads


def run(folder: Path, **options: Any) -> Evidence:
    """Evidence of `images` by `of`, a network and its heads."""
    images = options.pop("images", make_images())
    model, heads = options.pop("of", None) or make_model()
    given = {"geometry": GEOMETRY, "variants": VARIANTS, "thresholds": THRESHOLDS, "prior": PRIOR}
    given |= {"batch_size": 4, "accelerator": "cpu", "store": Store(folder)}
    return collect(model, heads, images, **given | options)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return run(tmp_path_factory.mktemp("store"))


def test_evidence_equals_a_plain_computation(rows: Evidence) -> None:
    images = make_images()
    model, heads = make_model()
    assert images.boxes is not None
    truth = GEOMETRY.boxes(images.boxes, SIDE)
    np.testing.assert_array_equal(rows.ids, images.ids.numpy())
    for n in range(len(images)):
        with torch.no_grad():
            features = model.eval().forward_features(prepare(images.pixels([n]), GEOMETRY))
            logits = {name: head(features.mean((2, 3))) for name, head in heads.items()}
        label = images.labels[n : n + 1]
        for h, g in enumerate(logits.values()):
            assert rows.predictions[h, n] == int(g.argmax())
            pmi = pointwise_mutual_information(g, PRIOR, "softmax")[0, label]
            assert rows.pmi[h, n] == pytest.approx(float(pmi), abs=1e-5)
        maps = {
            CAM: info_cam(features, heads["a"].weight, label, None),
            OTHERS: info_cam(features, heads["a"].weight, label, "others"),
            LEAST: info_cam(features, heads["b"].weight, label, "least_likely", logits["b"], 2, "full"),
            NORM: features.norm(dim=1),
        }
        for variant, m in maps.items():
            boxes = boxes_from_maps(m.detach(), 16, THRESHOLDS)
            iou = iou_with_truth(boxes, truth[n : n + 1])[0].numpy()
            np.testing.assert_allclose(rows.iou(variant)[n], iou, atol=1 / 60_000)
            kept = boxes_from_maps(m.detach(), 16, [official_threshold(0.2)])[0, 0]
            assert rows.official_boxes[rows.position(variant), n].tolist() == kept.tolist()
        for variant, box in ((WHOLE, [0, 0, 16, 16]), (HALF, [4, 4, 12, 12])):
            iou = iou_with_truth(torch.tensor([[box]]), truth[n : n + 1])
            np.testing.assert_allclose(rows.iou(variant)[n], float(iou), atol=1 / 60_000)


def test_one_pass_whatever_the_batch_and_none_the_second_time(rows: Evidence, tmp_path: Path) -> None:
    model, heads = make_model()
    model.train()
    for _ in range(2):
        again = run(tmp_path, of=(model, heads), batch_size=100)
        assert model.features.seen == 11
        assert model.training
        np.testing.assert_array_equal(again.units, rows.units)
        np.testing.assert_array_equal(again.predictions, rows.predictions)
        np.testing.assert_allclose(again.pmi, rows.pmi, atol=1e-5)


def test_the_store_tells_apart_all_that_changes_the_evidence(tmp_path: Path, monkeypatch: Any) -> None:
    model, heads = of = make_model()
    for options in (
        {},
        {"images": make_images(12)},
        {"of": (model, {"a": heads["a"], "b": nn.Linear(6, CLASSES)})},
        {"geometry": Geometry(crop=16)},
        {"variants": VARIANTS[:3]},
        {"thresholds": [0.1, 0.3, 0.5]},
        {"prior": torch.tensor([0.7, 0.1, 0.1, 0.1])},
        {"precision": "bf16-mixed"},
    ):
        run(tmp_path, **{"of": of} | options)
    with torch.no_grad():
        model.features.layer.weight.add_(1.0)
    run(tmp_path, of=of)
    model.features.layer.stride = (3, 3)
    run(tmp_path, of=of)
    monkeypatch.setattr(localize, "code_digest", lambda module: f"other {module}")
    run(tmp_path, of=of)
    assert len([p for p in (tmp_path / "cache").iterdir() if p.is_dir()]) == 11


def test_quantised_iou_keeps_the_criteria() -> None:
    for b in range(1, 160):  # every IoU of two boxes in small images is such a fraction
        a = np.arange(b + 1)
        units = quantise(a / b)
        assert np.all(np.abs(units / 60_000 - a / b) <= 1 / 60_000)
        for c in (Fraction(3, 10), Fraction(1, 2), Fraction(7, 10)):
            np.testing.assert_array_equal(units / 60_000 >= float(c), [Fraction(int(i), b) >= c for i in a])
    just_below = made_evidence(np.array([[[0.499995], [0.5]]]), np.array([True, True]))
    assert just_below.hits(just_below.variants[0])[:, 0].tolist() == [False, True]


def test_file_brings_back_every_row(rows: Evidence, tmp_path: Path) -> None:
    back = load(rows.save(tmp_path / "sub" / "rows.npz"))
    for name, value in vars(rows).items():
        np.testing.assert_array_equal(getattr(back, name), value)
        assert getattr(getattr(back, name), "dtype", None) == getattr(value, "dtype", None)
    assert (back.variants, back.heads, back.sizes) == (rows.variants, rows.heads, rows.sizes)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["rows.npz"]


def test_damaged_files_are_refused(rows: Evidence, tmp_path: Path) -> None:
    path = rows.save(tmp_path / "rows.npz")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(load(path).units, rows.units)  # a date or a comment was hit
        except ValueError as error:
            assert "not a whole evidence file" in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200
    other = io.BytesIO()
    np.savez(other, ids=np.arange(3))
    for content in (b"", b"not a file", whole[: len(whole) // 2], other.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole evidence file"):
            load(path)
    with pytest.raises(ValueError, match=r"labels must have shape \(11,\), has \(10,\)"):
        replace(rows, labels=rows.labels[:-1])
    with pytest.raises(ValueError, match="at most 60000"):
        replace(rows, units=np.full_like(rows.units, 61_000))
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        load(tmp_path / "absent.npz")


def made_evidence(iou: np.ndarray, correct: np.ndarray, variants: Any = None) -> Evidence:
    """Evidence of one head with given IoU (V, N, T)."""
    v, n, t = iou.shape
    box = np.tile(np.array([0, 0, 4, 4]), (n, 1)).astype(np.float32)
    known = (Variant("infocam", "h", "least_likely"), Variant("cam", "h"), Variant("feature_norm"))
    return Evidence(
        variants=variants or known[:v],
        heads=("h",),
        sizes=(4, 4, 4),
        ids=np.arange(n),
        labels=np.ones(n, dtype=np.int64),
        predictions=np.where(correct, 1, 0)[None],
        pmi=np.linspace(0, 1, n, dtype=np.float32)[None],
        truth=box,
        stored_truth=box,
        thresholds=np.arange(t) / 10,
        units=quantise(iou),
        official_boxes=np.tile(box[None], (v, 1, 1)).astype(np.int16),
    )


def one(frame: pd.DataFrame, **columns: Any) -> pd.Series:
    for name, value in columns.items():
        frame = frame[frame[name].isna() if value is None else frame[name] == value]
    assert len(frame) == 1, (columns, len(frame))
    return frame.iloc[0]


def test_rows_of_a_seed_are_counts_at_the_held_out_threshold() -> None:
    rng = np.random.default_rng(0)
    iou, correct, held = rng.random((2, 50, 6)), rng.random(50) < 0.7, rng.random((2, 30, 6))
    scored = made_evidence(iou, correct)
    frame = localize.rows([scored], [made_evidence(held, np.ones(30, bool))], [7], {"dataset": "made"})
    assert set(frame["dataset"]) == {"made"}
    for i, variant in enumerate(scored.variants):
        of_seed = frame[(frame["method"] == variant.method) & (frame["seed"] == 7)]
        value = of_seed.set_index("metric")["value"]
        counts, at = (held[i] >= 0.5).sum(0), round(float(value["threshold"]) * 10)
        assert counts[at] == counts.max()
        hit = iou[i] >= 0.5
        assert value["gt_known"] == pytest.approx(100 * hit[:, at].mean())
        assert value["top1_loc"] == pytest.approx(100 * (hit[:, at] & correct).mean())
        assert value["oracle_gt_known"] == pytest.approx(100 * hit.mean(0).max())
        assert value["oracle_top1_loc"] == pytest.approx(100 * (hit & correct[:, None]).mean(0).max())
        assert value["max_box_acc_v2"] == pytest.approx(100 * max_box_acc_v2(torch.from_numpy(iou[i])))
        p = value["gt_known"] / 100
        stderr = of_seed.set_index("metric").loc["gt_known", "stderr"]
        assert stderr == pytest.approx(100 * math.sqrt(p * (1 - p) / 50))
        there = hit.mean(0).argmax()  # of equals the first, as in the other direction
        swapped = [hit[:, at], held[i][:, there] >= 0.5]
        together = one(frame, method=variant.method, metric="gt_known_all", than_method=None)
        assert together["value"] == pytest.approx(100 * np.concatenate(swapped).mean())
        assert together["n"] == 80
        right = [swapped[0] & correct, swapped[1]]
        together = one(frame, method=variant.method, metric="top1_loc_all", than_method=None)
        assert together["value"] == pytest.approx(100 * np.concatenate(right).mean())
    assert one(frame, metric="accuracy", head="h")["value"] == pytest.approx(100 * correct.mean())
    assert one(frame, metric="mutual_information", head="h")["value"] == pytest.approx(0.5)


def test_held_out_images_choose_the_size_of_the_centre_box() -> None:
    sizes = (Variant("centre_box", fraction=0.4), Variant("centre_box", fraction=0.8))
    small_better, large_better = np.full((2, 20, 2), 0.9), np.full((2, 20, 2), 0.9)
    small_better[1], large_better[0] = 0.1, 0.1
    right = np.ones(20, bool)
    scored = made_evidence(small_better, right, sizes)
    for iou, expected in ((small_better, 100.0), (large_better, 0.0)):
        held = made_evidence(iou, right, sizes)
        frame = localize.rows([scored], [held], [0], {})
        assert one(frame, method="centre_box", metric="gt_known", seed=0)["value"] == expected
        for head in (None, "h"):  # the same for every head
            assert 100 * localize.localized(scored, held, Variant("centre_box", head)).mean() == expected


def test_differences_are_paired_and_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(1)
    cam = np.repeat(rng.random((1, 400, 1)), 2, 2)
    least = np.clip(cam + 0.02, 0, 1)  # a little better on the very same images
    scored = made_evidence(np.concatenate([least, cam]), np.ones(400, bool))
    frame = localize.rows([scored, scored], [scored, scored], [0, 1], {})
    pooled = frame[frame["seed"].isna()]
    single = one(pooled, method="infocam", metric="gt_known", than_method=None)
    lead = one(pooled, method="infocam", metric="gt_known", than_method="cam")
    assert lead["value"] == pytest.approx(100 * ((least >= 0.5).mean() - (cam >= 0.5).mean()))
    assert (lead["unit"], single["unit"]) == ("points", "%")
    assert lead["high"] - lead["low"] < (single["high"] - single["low"]) / 2
    p = single["value"] / 100  # normal approximation of a share
    assert single["high"] - single["low"] == pytest.approx(2 * 196 * (p * (1 - p) / 400) ** 0.5, rel=0.15)
    with pytest.raises(ValueError, match="must share images"):
        localize.rows([scored, replace(scored, ids=scored.ids[::-1])], [scored, scored], [0, 1], {})


def test_every_difference_is_like_for_like_and_baselines_are_treated_as_methods_are() -> None:
    made = localize.variants(["decayed", "free"], region=4, paddings=["same", "full"])
    assert len(set(made)) == len(made) == 2 * 5 * 3 + 3 + 1 + len(localize.FRACTIONS)
    methods = dict.fromkeys(replace(v, head="h", fraction=1.0) for v in made if v.head != "free")
    pairs = localize.comparisons(list(methods))
    for first, second in pairs:
        assert first.head == second.head == "h"
        if second.method != "centre_box" and (first.method, first.against) != (second.method, second.against):
            assert (first.region, first.padding) == (second.region, second.padding)
    region_alone = {
        (a.method, a.against, a.padding) for a, b in pairs if (a.method, a.against) == (b.method, b.against)
    }
    assert len(region_alone) == 6 * 2  # CAM, three infoCAMs, the spread and the norm, by both paddings
    against_norm = [
        (a.region, a.padding) for a, b in pairs if b.method == "feature_norm" and a.method == "infocam"
    ]
    assert sorted(against_norm) == [(1, "same"), (4, "full"), (4, "same")]
    assert sum(b.method == "centre_box" for _, b in pairs) == 4 * 3


def test_a_second_layer_is_compared_alike_with_its_own_map_and_with_the_best_without() -> None:
    made = localize.variants(["free"], 3, ["full"], second=True)
    twice = [v for v in made if v.second_layer]
    assert [(v.method, v.against) for v in twice] == [
        ("cam", None),
        ("infocam", "least_likely"),
        ("spread", None),
        ("feature_norm", None),
    ]
    methods = [replace(v, head="free", fraction=1.0) for v in made]
    seconds = [b for a, b in localize.comparisons(list(dict.fromkeys(methods))) if a == twice[2]]
    words = [(b.method, b.region, b.second_layer) for b in seconds]
    assert words == [
        ("cam", 1, True),
        ("feature_norm", 1, True),
        ("spread", 1, False),
        ("cam", 3, False),
        ("feature_norm", 3, False),
        ("centre_box", 1, False),
    ]
    for method, region in (("cam", 3), ("centre_box", 1)):
        with pytest.raises(ValueError, match="only maps without region sum have a second layer"):
            Variant(method, "free", region=region, second_layer=True)  # type: ignore[arg-type]


def test_bootstrap_agrees_with_the_normal_interval_and_repeats() -> None:
    hits = 100.0 * (np.random.default_rng(0).random((1, 1, 4000)) < 0.3)
    means, low, high = bootstrap(hits)
    assert means[0] == pytest.approx(hits.mean())
    assert (high - low)[0] / 2 == pytest.approx(1.96 * hits.std() / math.sqrt(4000), rel=0.06)
    both = bootstrap(np.concatenate([hits, np.full((1, 1, 4000), 0.1)]))
    assert [ends[0] for ends in both] == [means[0], low[0], high[0]]  # whatever else is asked
    assert both[2][1] == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"not empty, was \(1, 0\)"):
        bootstrap(np.empty((1, 0)))


def test_bootstrap_shares_images_between_seeds_and_draws_seeds() -> None:
    images, offsets = np.random.default_rng(1).random((1, 1, 500)), np.array([-1, -0.5, 0, 0.5, 1])
    width = [
        float((high - low)[0])
        for _, low, high in map(bootstrap, (images, images.repeat(5, 1), images + offsets[:, None]))
    ]
    assert width[1] == pytest.approx(width[0], rel=0.1)  # nested, it would be narrower by the root of 5
    # Five equally weighted draws out of the offsets have variance 0.5 / 5.
    assert width[2] / 2 == pytest.approx(1.96 * math.sqrt(0.1), rel=0.1)


def test_threshold_transfer_ends_at_the_score() -> None:
    rng = np.random.default_rng(2)
    scored, held = (made_evidence(rng.random((1, n, 8)), np.ones(n, bool)) for n in (80, 50))
    (method,) = scored.variants
    curve = localize.threshold_transfer(scored, held, method, {})
    assert curve["images"].dropna().tolist() == [5, 10, 20, 50]
    last = one(curve, images=50)
    assert last["low"] == pytest.approx(last["high"])
    assert last["value"] == pytest.approx(100 * localize.localized(scored, held, method).mean())
    few = one(curve, images=5)
    assert few["low"] < few["value"] < few["high"]
    assert one(curve, metric="oracle_gt_known")["value"] == pytest.approx(curve["value"].max())


def test_official_rows_change_one_thing_at_a_time() -> None:
    rng = np.random.default_rng(3)
    n = 200
    corner = rng.integers(0, 30, (n, 2))
    truth = np.concatenate([corner, corner + rng.integers(5, 30, (n, 2))], 1).astype(np.float32)
    found = truth + rng.integers(-2, 3, (n, 4))
    found[:20] = 0  # maps without a box
    base = made_evidence(np.zeros((1, n, 1)), np.ones(n, bool))
    boxes_of = {"truth": truth, "stored_truth": truth, "official_boxes": found[None].astype(np.int16)}
    right_class = np.arange(n) % 4 > 0
    predictions = np.where(right_class, base.labels, base.labels + 1)[None]
    scored = replace(base, **boxes_of, sizes=(64, 64, 64), predictions=predictions)
    quirks = Official(batch_size=32, boxes_as_xywh=True)
    frame = localize.official_rows(scored, base.variants[0], quirks, {}, seed=0)
    top1 = frame[frame["metric"] == "top1_loc"].set_index("official")["value"]
    frame = frame[frame["metric"] == "gt_known"].set_index("official")["value"]
    boxes, true = torch.from_numpy(found).double(), torch.from_numpy(truth).double()
    misread = torch.cat([true[:, :2], true[:, :2] + true[:, 2:] - 1], 1)  # listed corners are inclusive
    wrong = {"none": true, "boxes_as_xywh": misread, "resize_minus_one": true * 63 / 64 + 1}
    for name, against in wrong.items():
        right = iou_with_truth(boxes[:, None], against)[:, 0] >= 0.5
        assert frame[name] == pytest.approx(100 * float(right.double().mean()))
        assert top1[name] == pytest.approx(100 * float((right.numpy() & right_class).mean()))
    right = iou_with_truth(boxes[:, None], true)[:, 0] >= 0.5
    assert frame["running_average"] == pytest.approx(100 * official_running_average(right, 32))
    boxes[:20] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    free = official_iou(boxes, true) >= 0.5
    assert bool(free[:20].any())  # boxes of empty maps become hits
    assert frame["unclamped_iou"] == pytest.approx(100 * float(free.double().mean()))
    both = official_iou(boxes, misread * 63 / 64 + 1) >= 0.5
    assert frame["all"] == pytest.approx(100 * official_running_average(both, 32))
    boxes[:20] = 0
    convention = inclusive_iou(boxes, true, 64) >= 0.5
    assert frame["inclusive_boxes"] == pytest.approx(100 * float(convention.double().mean()))


def test_the_two_heads_differ_in_gauge_as_said(monkeypatch: Any) -> None:
    labels = torch.arange(200) % 4
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 16, generator=generator) + 3 * nn.functional.one_hot(labels, 16)
    heads = localize.gauge_heads(features, labels, 4, seed=0)
    assert common_share(heads["decayed"].weight.detach()) < 1e-5
    assert common_share(heads["free"].weight.detach()) > 0.05
    for head in heads.values():
        assert (head(features).argmax(1) == labels).double().mean() > 0.9
    again = localize.gauge_heads(features, labels, 4, seed=0)
    assert torch.equal(heads["free"].weight, again["free"].weight)
    monkeypatch.setattr(localize, "LARGE", 100)  # large sets get a head in the same gauge
    assert common_share(localize.gauge_heads(features, labels, 4, seed=0)["decayed"].weight) < 1e-6


def test_the_experiment_on_drawn_birds(tmp_path: Path) -> None:
    how = recipe("minibirds", tmp_path, train_limit=200, passes=200)
    images = localize.sets(how, tmp_path, limit=40)
    train, heldout, test = images
    assert (len(train), len(heldout), len(test)) == (200, 40, 40)
    assert not (heldout.images[:, None] == test.images[None]).all((2, 3, 4)).any()
    options: dict[str, Any] = {"region": 3, "thresholds": 5, "data_dir": tmp_path}
    runs = [localize.evidence(how, seed, images, **options) for seed in (0, 1)]
    frame = localize.rows([r.scored for r in runs], [r.held for r in runs], [0, 1], how.columns())
    assert set(frame["dataset"]) == {"minibirds"}
    said = localize.head_rows(how, runs, tmp_path)
    assert set(said["metric"]) == {"common_share", "pmi_correlation", "mutual_information", "classes"}
    assert one(said, method="exact", metric="classes")["value"] == train.num_classes
    exact = one(said, method="exact", metric="mutual_information")
    assert exact["value"] == pytest.approx(minibirds.mutual_information(runs[0].prior), abs=1e-9)
    sweep = localize.gauge_sweep(how, runs[0], images, data_dir=tmp_path)
    assert len(sweep) == 3 * 6 * 3
    info = sweep[sweep["method"] == "infocam"].pivot_table("value", ["vector", "common_length"], "against")
    assert info.nunique().tolist() == [1, 1]  # infoCAM does not know the common vector
    start = sweep[sweep["common_length"] == 0].groupby("method")["value"]
    decayed = frame[(frame["head"] == "decayed") & (frame["seed"] == 0) & (frame["metric"] == "gt_known")]
    assert start.first()["cam"] == one(decayed, method="cam", region=1)["value"]
    example = localize.gauge_example(how, runs[0], images, [0.0, 4.0], among=40)
    i = example["index"]
    cams, infos = example["maps"]
    assert (cams[0] - cams[1]).abs().max() > 100 * (infos[0] - infos[1]).abs().max()
    at = localize.chosen(runs[0].held, Variant("cam", "decayed"))[1]
    hit = bool(runs[0].scored.hits(Variant("cam", "decayed"))[i, at])
    assert hit == (float(example["iou"][0, 0]) >= 0.5), "the box that the evidence has"
    shares = said[(said["metric"] == "common_share") & (said["head"] == "own") & (said["seed"] == 0)]
    assert shares["epoch"].tolist()[:-1] == [0, 1]
    assert one(shares, epoch=1)["value"] == pytest.approx(shares["value"].iloc[-1]) != shares["value"].iloc[0]
    assert one(said, head="own_zero_sum", seed=0, metric="common_share")["value"] < 1e-6
    own, turned = (frame[(frame["head"] == head) & (frame["seed"] == 0)] for head in ("own", "own_zero_sum"))
    accuracies = [one(f[f["metric"] == "accuracy"])["value"] for f in (own, turned)]
    assert accuracies[0] == accuracies[1], "the same classifier"
    scores = [f[(f["metric"] == "gt_known") & (f["method"] == "infocam")]["value"] for f in (own, turned)]
    assert scores[0].tolist() == scores[1].tolist(), "infoCAM does not know the gauge"


def test_boxes_at_gives_each_map_its_own_threshold() -> None:
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    boxes = localize.boxes_at(torch.stack([ramp, ramp]), 8, [0.2, 0.8])
    assert boxes[:, 2].tolist() == [8, 8]
    assert boxes[0, 0] < boxes[1, 0]


def test_bad_input(rows: Evidence, tmp_path: Path) -> None:
    for options, message in (
        ({"variants": [Variant("cam", "c")]}, r"head must be one of \['a', 'b'\]"),
        ({"variants": [replace(NORM, head="a")]}, r"head must be one of \[None\]"),
        ({"variants": [CAM, CAM]}, "no variant twice"),
        ({"variants": []}, "at least one head and one variant"),
        ({"of": (make_model()[0], {})}, "at least one head and one variant"),
        ({"thresholds": [0.5, 0.1]}, "increasing"),
        ({"images": replace(make_images(), boxes=None)}, "no boxes"),
        ({"images": make_images().subset([])}, "no images"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, **options)
    for fields in (
        {"method": "infocam"},
        {"method": "cam", "against": "others"},
        {"method": "whole_image", "region": 3},
        {"method": "cam", "padding": "full"},
        {"method": "cam", "fraction": 0.5},
    ):
        with pytest.raises(ValueError, match="only infocam is against a class"):
            Variant(**fields)
    with pytest.raises(ValueError, match="method must be one of"):
        Variant("gradcam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no .*runner_up.* in this evidence"):
        localize.localized(rows, rows, Variant("infocam", "a", "runner_up"))
    with pytest.raises(ValueError, match="same variants and thresholds"):
        localize.localized(rows, replace(rows, thresholds=rows.thresholds / 2), CAM)
    with pytest.raises(ValueError, match="got 1, 1 and 2"):
        localize.rows([rows], [rows], [0, 1], {})
    with pytest.raises(ValueError, match="distinct"):
        localize.rows([rows, rows], [rows, rows], [0, 0], {})
