"""Gauge: what a common vector changes and what it cannot, and the sets of the localization experiment."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infocam_utils.cam import class_activation_maps, info_cam
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.experiments import localize as gauge
from infocam_utils.experiments.localize import (
    Evidence,
    Variant,
    collect,
    example_evidence,
    hits,
    interval,
    load,
    official_rows,
    quantise,
    table,
    threshold_transfer,
)
from infocam_utils.information import pointwise_mutual_information
from infocam_utils.localization import boxes_from_maps, iou_with_truth
from infocam_utils.official import official_iou, official_running_average, official_threshold

CLASSES, SIDE = 4, 24
THRESHOLDS = [0.1, 0.3, 0.5, 0.7]
GEOMETRY = Geometry(resize=20, crop=16)
PRIOR = torch.full((CLASSES,), 1 / CLASSES)
VARIANTS = (
    Variant("CAM", "a"),
    Variant("others", "a", "others"),
    Variant("least", "b", "least_likely", region=2, padding="full"),
    Variant("norm", "b", kind="feature_norm"),
    Variant("whole", "a", kind="centre"),
    Variant("centre", "b", kind="centre", fraction=0.5),
    Variant("bicubic", "a", mode="bicubic"),
)


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
    return ImageSet(pixels, labels, boxes, CLASSES, names, torch.arange(n) * 3 + 1, f"made{seed}")


def make_model() -> tuple[Classifier, dict[str, nn.Linear]]:
    torch.manual_seed(0)
    heads = {"a": nn.Linear(6, CLASSES), "b": nn.Linear(6, CLASSES, bias=False)}
    return Classifier(Counted(), heads["a"]), heads


def run(images: ImageSet, batch_size: int = 4, **options: object) -> Evidence:
    model, heads = make_model()
    given = {"geometry": GEOMETRY, "variants": VARIANTS, "thresholds": THRESHOLDS, "prior": PRIOR, **options}
    return collect(model, heads, images, batch_size=batch_size, accelerator="cpu", **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rows() -> Evidence:
    return run(make_images())


def test_rows_equal_a_plain_computation(rows: Evidence) -> None:
    images = make_images()
    model, heads = make_model()
    assert images.boxes is not None
    truth = GEOMETRY.boxes(images.boxes, SIDE)
    np.testing.assert_array_equal(rows.ids, images.ids.numpy())
    for n in range(len(images)):
        x = prepare(images.pixels([n]), GEOMETRY)
        with torch.no_grad():
            features = model.eval().forward_features(x)
            logits = {name: head(features.mean((2, 3))) for name, head in heads.items()}
        label = images.labels[n : n + 1]
        for h, g in enumerate(logits.values()):
            assert rows.predictions[h, n] == int(g.argmax())
            pmi = pointwise_mutual_information(g, PRIOR, "softmax")[0, label]
            assert rows.pmi[h, n] == pytest.approx(float(pmi), abs=1e-5)
        maps = {
            "CAM": info_cam(features, heads["a"].weight, label, None),
            "others": info_cam(features, heads["a"].weight, label, "others"),
            "least": info_cam(features, heads["b"].weight, label, "least_likely", logits["b"], 2, "full"),
            "norm": features.norm(dim=1),
        }
        for name, m in maps.items():
            boxes = boxes_from_maps(m.detach(), 16, THRESHOLDS)
            iou = iou_with_truth(boxes, truth[n : n + 1])[0].numpy()
            np.testing.assert_allclose(rows.iou(name)[n], iou, atol=1 / 60_000)
        kept = boxes_from_maps(maps["CAM"].detach(), 16, [official_threshold(0.2)])[0, 0]
        assert rows.boxes[0, n, 0].tolist() == kept.tolist()
        for name, box in (("whole", [0, 0, 16, 16]), ("centre", [4, 4, 12, 12])):
            iou = iou_with_truth(torch.tensor([[box]]), truth[n : n + 1])
            np.testing.assert_allclose(rows.iou(name)[n], float(iou), atol=1 / 60_000)


def test_one_pass_whatever_the_batch_and_the_mode_is_restored(rows: Evidence) -> None:
    model, heads = make_model()
    model.train()
    options = {"geometry": GEOMETRY, "variants": VARIANTS, "thresholds": THRESHOLDS, "prior": PRIOR}
    again = collect(model, heads, make_images(), batch_size=100, accelerator="cpu", **options)  # type: ignore[arg-type]
    assert model.features.seen == 11
    assert model.training
    np.testing.assert_array_equal(again.units, rows.units)
    np.testing.assert_array_equal(again.predictions, rows.predictions)
    np.testing.assert_allclose(again.pmi, rows.pmi, atol=1e-5)


def test_quantised_iou_keeps_the_criteria() -> None:
    # every IoU of two boxes in small images is such a fraction
    for b in range(1, 160):
        a = np.arange(b + 1)
        units = quantise(a / b)
        assert np.all(np.abs(units / 60_000 - a / b) <= 1 / 60_000)
        for c in (Fraction(3, 10), Fraction(1, 2), Fraction(7, 10)):
            np.testing.assert_array_equal(units / 60_000 >= float(c), [Fraction(int(i), b) >= c for i in a])


def test_file_brings_back_every_row(rows: Evidence, tmp_path: Path) -> None:
    back = load(rows.save(tmp_path / "sub" / "rows.npz"))
    for name in ("variants", "heads", "sizes"):
        assert getattr(back, name) == getattr(rows, name)
    names = "ids labels predictions pmi truth thresholds units box_thresholds boxes stored_boxes"
    for name in names.split():
        np.testing.assert_array_equal(getattr(back, name), getattr(rows, name))
        assert getattr(back, name).dtype == getattr(rows, name).dtype
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["rows.npz"]


def test_damaged_files_are_refused(rows: Evidence, tmp_path: Path) -> None:
    path = rows.save(tmp_path / "rows.npz")
    whole = path.read_bytes()
    for content in (b"", b"not a file", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole evidence file"):
            load(path)
    np.savez(path, ids=np.arange(3))
    with pytest.raises(ValueError, match="not a whole evidence file"):
        load(path)
    with np.load(rows.save(tmp_path / "other.npz")) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "labels": arrays["labels"][:-1]})
    with pytest.raises(ValueError, match=r"labels must have shape \(11,\), has \(10,\)"):
        load(path)
    np.savez(path, **{**arrays, "units": np.full_like(arrays["units"], 61_000)})
    with pytest.raises(ValueError, match="at most 60000"):
        load(path)
    with pytest.raises(FileNotFoundError, match="collect it first"):
        load(tmp_path / "absent.npz")


def made_evidence(iou: np.ndarray, correct: np.ndarray, ids: np.ndarray | None = None) -> Evidence:
    """Evidence with given IoU (V, N, T); names v0, v1, …"""
    v, n, t = iou.shape
    box = np.tile(np.array([0, 0, 4, 4]), (n, 1))
    return Evidence(
        tuple(Variant(f"v{i}", "h") for i in range(v)), ("h",), np.arange(n) if ids is None else ids,
        np.ones(n, dtype=np.int64), np.where(correct, 1, 0)[None], np.zeros((1, n), dtype=np.float32),
        box.astype(np.float32), np.arange(t) / 10, quantise(iou), np.array([0.2]),
        np.tile(box[None, :, None], (v, 1, 1, 1)).astype(np.int16), box.astype(np.float32), (4, 4, 4),
    )  # fmt: skip


def test_table_takes_the_threshold_from_held_out_images() -> None:
    rng = np.random.default_rng(0)
    iou, correct = rng.random((2, 50, 6)), rng.random(50) < 0.7
    held = rng.random((2, 30, 6))
    frame = table(made_evidence(iou, correct), made_evidence(held, np.ones(30, dtype=bool)))
    for i in range(2):
        counts = (held[i] >= 0.5).sum(0)
        row = frame.loc[f"v{i}"]
        chosen = round(float(row["threshold"]) * 10)
        assert counts[chosen] == counts.max()
        hit = iou[i] >= 0.5
        assert row["gt_known"] == pytest.approx(100 * hit[:, chosen].mean())
        assert row["top1_loc"] == pytest.approx(100 * (hit[:, chosen] & correct).mean())
        assert row["oracle_gt_known"] == pytest.approx(100 * hit.mean(0).max())
        assert row["oracle_top1_loc"] == pytest.approx(100 * (hit & correct[:, None]).mean(0).max())
        assert row["accuracy"] == pytest.approx(100 * correct.mean())
        v2 = np.mean([(iou[i] >= c).mean(0).max() for c in (0.3, 0.5, 0.7)])
        assert row["max_box_acc_v2"] == pytest.approx(100 * v2)
        assert row["gt_known"] <= row["oracle_gt_known"]


def test_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(1)
    first = np.repeat(rng.random((1, 400, 1)), 2, 2)
    second = np.clip(first + 0.02, 0, 1)  # a little better on the very same images
    rows = made_evidence(np.concatenate([second, first]), np.ones(400, dtype=bool))
    single = interval("a", [rows], [rows], "v0")
    lead = interval("b", [rows], [rows], "v0", "v1")
    expected = 100 * ((second >= 0.5).mean() - (first >= 0.5).mean())
    assert lead.value == pytest.approx(expected)
    assert lead.high - lead.low < (single.high - single.low) / 2
    # normal approximation of a share: 1.96 standard errors on both sides
    p = single.value / 100
    assert single.high - single.low == pytest.approx(2 * 196 * (p * (1 - p) / 400) ** 0.5, rel=0.15)
    twice = interval("c", [rows, rows], [rows, rows], "v0", "v1", seeds=[0, 1])
    assert twice.values == pytest.approx((lead.value, lead.value))


def test_threshold_transfer_ends_at_the_table() -> None:
    rng = np.random.default_rng(2)
    rows = made_evidence(rng.random((1, 80, 8)), np.ones(80, dtype=bool))
    held = made_evidence(rng.random((1, 60, 8)), np.ones(60, dtype=bool))
    curve = threshold_transfer(rows, held, "v0", sizes=[5, 60], draws=20)
    assert curve["gt_known"].iloc[-1] == pytest.approx(table(rows, held)["gt_known"].iloc[0])
    assert curve["low"].iloc[-1] == pytest.approx(curve["high"].iloc[-1])
    assert (curve["gt_known"] <= curve["oracle"] + 1e-9).all()


def test_official_rows_change_one_thing_at_a_time() -> None:
    rng = np.random.default_rng(3)
    n, stored, resized, side = 200, 64, 64, 64
    corner = rng.integers(0, 30, (n, 2))
    truth = np.concatenate([corner, corner + rng.integers(5, 30, (n, 2))], 1).astype(np.float32)
    found = truth + rng.integers(-2, 3, (n, 4))
    found[:20] = 0  # maps without a box
    base = made_evidence(np.zeros((1, n, 1)), np.ones(n, dtype=bool))
    rows = replace(base, truth=truth, stored_boxes=truth, boxes=found[None, :, None].astype(np.int16),
                   sizes=(stored, resized, side))  # fmt: skip
    frame = official_rows(rows, "v0", batch_size=32, tiny=True)["gt_known"]
    boxes, true = torch.from_numpy(found).double(), torch.from_numpy(truth).double()
    right = iou_with_truth(boxes[:, None], true)[:, 0] >= 0.5
    assert frame["correct"] == pytest.approx(100 * float(right.double().mean()))
    assert frame["average of running averages"] == pytest.approx(100 * official_running_average(right, 32))
    # listed corners are inclusive: x1 − 1 is read as a width
    misread = torch.cat([true[:, :2], true[:, :2] + true[:, 2:] - 1], 1)
    wrong = iou_with_truth(boxes[:, None], misread)[:, 0] >= 0.5
    assert frame["boxes read as x y w h"] == pytest.approx(100 * float(wrong.double().mean()))
    shifted = true * 63 / 64 + 1
    moved = iou_with_truth(boxes[:, None], shifted)[:, 0] >= 0.5
    assert frame["resize − 1, floored shift, no clip"] == pytest.approx(100 * float(moved.double().mean()))
    boxes[:20] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    free = official_iou(boxes, true) >= 0.5
    assert bool(free[:20].any())  # boxes of empty maps become hits
    assert frame["unclamped IoU, sides + 1"] == pytest.approx(100 * float(free.double().mean()))
    both = official_iou(boxes, misread * 63 / 64 + 1) >= 0.5
    assert frame["all together"] == pytest.approx(100 * official_running_average(both, 32))


def test_subset_keeps_rows_together(rows: Evidence) -> None:
    part = rows.subset([4, 0, 7])
    assert part.ids.tolist() == rows.ids[[4, 0, 7]].tolist()
    np.testing.assert_array_equal(part.iou("least"), rows.iou("least")[[4, 0, 7]])
    np.testing.assert_array_equal(part.correct("norm"), rows.correct("norm")[[4, 0, 7]])


def test_bad_input(rows: Evidence) -> None:
    images = make_images(3)
    with pytest.raises(ValueError, match="no boxes"):
        run(replace(images, boxes=None))
    with pytest.raises(ValueError, match="no images"):
        run(images.subset([]))
    with pytest.raises(ValueError, match=r"uses head 'c'; the heads are a, b"):
        run(images, variants=[Variant("x", "c")])
    with pytest.raises(ValueError, match="names of their own"):
        run(images, variants=[Variant("x", "a"), Variant("x", "b")])
    with pytest.raises(ValueError, match="names of their own"):
        run(images, variants=[])
    with pytest.raises(ValueError, match="increasing"):
        run(images, thresholds=[0.5, 0.1])
    with pytest.raises(ValueError, match="no variant 'least likely'; there are CAM, others"):
        rows.iou("least likely")
    with pytest.raises(ValueError, match="metric must be one of gt_known, top1_loc"):
        hits(rows, rows, "CAM", metric="top1")
    with pytest.raises(ValueError, match="different thresholds"):
        table(rows, example_evidence())
    with pytest.raises(ValueError, match="need images, have 11, 0"):
        table(rows, rows.subset(np.arange(0)))
    with pytest.raises(ValueError, match="one held-out evidence each, got 0 and 0"):
        interval("x", [], [], "CAM")
    with pytest.raises(ValueError, match="seeds must share images"):
        interval("x", [rows, replace(rows, ids=rows.ids[::-1])], [rows, rows], "CAM")
    with pytest.raises(ValueError, match=r"1\.\.11.*got 12"):
        threshold_transfer(rows, rows, "CAM", sizes=[12])


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 5)


def test_a_common_vector_moves_cam_and_neither_softmax_nor_infocam(head):
    features = torch.rand(3, 8, 4, 4)
    pooled, labels = features.mean((2, 3)), torch.tensor([0, 3, 4])
    moved = gauge.with_common_vector(head, scale=2.0)
    before, after = head(pooled), moved(pooled)
    assert torch.allclose(before.softmax(1), after.softmax(1), atol=1e-6)
    for against in ("others", "least_likely", "runner_up"):
        first = info_cam(features, head.weight, labels, against, before)
        second = info_cam(features, moved.weight, labels, against, after)
        assert torch.allclose(first, second, atol=1e-5), against
    cams = [class_activation_maps(features, h.weight) for h in (head, moved)]
    assert (cams[0] - cams[1]).abs().max() > 0.1


def test_length_of_the_common_vector_is_what_was_asked(head):
    moved = gauge.with_common_vector(head, scale=3.0)
    shift = moved.weight - head.weight.detach()
    assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-6), "the same for every class"
    rows = head.weight.detach().square().sum(1).mean().sqrt()
    assert float(shift[0].norm()) == pytest.approx(3.0 * float(rows), rel=1e-5)
    assert torch.equal(gauge.with_common_vector(head, 0.0).weight, head.weight)


def test_zero_sum_changes_the_gauge_and_no_prediction(head):
    moved, pooled = gauge.zero_sum(head), torch.rand(6, 8)
    assert gauge.common_share(moved.weight) < 1e-6 < gauge.common_share(head.weight.detach())
    assert torch.allclose(head(pooled).softmax(1), moved(pooled).softmax(1), atol=1e-6)


def test_large_sets_get_a_zero_sum_head_too(monkeypatch):
    monkeypatch.setattr(gauge, "LARGE", 100)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 16) + 3 * nn.functional.one_hot(labels, 16)
    heads = gauge.gauge_heads(features, labels, 4, seed=0)
    assert gauge.common_share(heads["decayed"].weight) < 1e-6


def test_the_two_heads_differ_in_gauge_as_said():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 16, generator=generator) + 3 * nn.functional.one_hot(labels, 16)
    heads = gauge.gauge_heads(features, labels, 4, seed=0)
    assert gauge.common_share(heads["decayed"].weight.detach()) < 1e-5
    assert gauge.common_share(heads["free"].weight.detach()) > 0.05
    for head in heads.values():
        assert (head(features).argmax(1) == labels).double().mean() > 0.9
    again = gauge.gauge_heads(features, labels, 4, seed=0)
    assert torch.equal(heads["free"].weight, again["free"].weight)


def test_variants_have_names_of_their_own_and_all_combinations():
    made = gauge.variants(["decayed", "free"], region=4, paddings=["same", "full"])
    names = [v.name for v in made]
    assert len(set(names)) == len(names) == 2 * 4 * 3 + 3 + 1 + len(gauge.FRACTIONS)
    full = next(v for v in made if v.name == "free/least_likely+full")
    assert (full.head, full.against, full.region, full.padding) == ("free", "least_likely", 4, "full")


def test_drawn_birds_have_three_disjoint_sets_with_boxes(tmp_path):
    train, heldout, test = gauge.localization_sets("minibirds", tmp_path, limit=40, train_limit=60)
    assert (len(train), len(heldout), len(test)) == (60, 40, 40)
    assert heldout.boxes is not None
    assert test.boxes is not None
    assert not (heldout.images[:, None] == test.images[None]).all((2, 3, 4)).any()


def test_boxes_at_gives_each_map_its_own_threshold():
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    boxes = gauge.boxes_at(torch.stack([ramp, ramp]), 8, [0.2, 0.8])
    assert boxes[:, 2].tolist() == [8, 8]
    assert boxes[0, 0] < boxes[1, 0]


def test_best_centre_needs_its_variants():
    with pytest.raises(ValueError, match="no variant 'centre_40'"):
        gauge.best_centre(example_evidence())


def test_variants_without_a_head_are_refused():
    with pytest.raises(ValueError, match="at least one head"):
        gauge.variants([], region=3)
