"""Localization numbers from evidence: tables, paired intervals, threshold transfer, the official defects.

Everything here is in per cent of images and needs no network. The threshold of a variant comes from
held-out images; what the scored images themselves would prefer is shown beside it and called oracle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from infocam_utils.evidence import Evidence
from infocam_utils.images import crop_start
from infocam_utils.localization import (
    iou_with_truth,
    localization_accuracy,
    max_box_acc_v2,
    select_threshold,
)
from infocam_utils.official import (
    official_box_transform,
    official_iou,
    official_running_average,
    official_tiny_boxes,
)
from infocam_utils.records import Record, bootstrap

METRICS = ("gt_known", "top1_loc")


def table(evidence: Evidence, heldout: Evidence, criterion: float = 0.5) -> pd.DataFrame:
    """All variants by all metrics, in %; one threshold per variant, the held-out images' best for GT-known.

    Columns: accuracy, threshold, gt_known and top1_loc there, then oracle_threshold, oracle_gt_known,
    oracle_top1_loc and max_box_acc_v2 (these four chosen on the scored images).

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> rows = example_evidence()
    >>> table(rows, rows)[["accuracy", "threshold", "gt_known", "top1_loc", "max_box_acc_v2"]]
             accuracy  threshold  gt_known  top1_loc  max_box_acc_v2
    variant
    CAM          50.0        0.2     100.0      50.0       83.333333
    """
    _check_same_sweep(evidence, heldout)
    rows = []
    for variant in evidence.variants:
        iou, correct = _tensors(evidence, variant.name)
        result = localization_accuracy(iou, correct, criterion)
        assert result.top1 is not None
        chosen = _threshold(heldout, variant.name, criterion)
        oracle = select_threshold(iou, evidence.thresholds.tolist(), criterion=criterion)
        rows.append({
            "variant": variant.name,
            "accuracy": 100 * float(correct.double().mean()),
            "threshold": float(evidence.thresholds[chosen]),
            "gt_known": 100 * float(result.gt_known[chosen]),
            "top1_loc": 100 * float(result.top1[chosen]),
            "oracle_threshold": float(evidence.thresholds[oracle]),
            "oracle_gt_known": 100 * float(result.gt_known[oracle]),
            "oracle_top1_loc": 100 * float(result.top1.max()),
            "max_box_acc_v2": 100 * max_box_acc_v2(iou),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("variant")


def hits(
    evidence: Evidence, heldout: Evidence, variant: str, metric: str = "gt_known", criterion: float = 0.5
) -> np.ndarray:
    """(N,) bool: images a variant localizes at its held-out threshold (`top1_loc`: and predicts right)."""
    _check_same_sweep(evidence, heldout)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    hit = evidence.iou(variant)[:, _threshold(heldout, variant, criterion)] >= criterion
    return hit & evidence.correct(variant) if metric == "top1_loc" else hit


def interval(
    name: str,
    evidences: Sequence[Evidence],
    heldouts: Sequence[Evidence],
    variant: str,
    reference: str | None = None,
    *,
    metric: str = "gt_known",
    criterion: float = 0.5,
    seeds: Sequence[int] = (),
    tolerance: float = 0.0,
) -> Record:
    """A variant's score, or its lead over `reference` on the same images, with a bootstrap interval, in %.

    One evidence per seed, all of the same images; images and seeds are drawn anew (`records.bootstrap`).
    Thresholds stay those of the held-out images.

    Raises
    ------
    ValueError : no evidence, different images, an unknown variant or metric

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> rows = example_evidence()
    >>> interval("birds/top1", [rows], [rows], "CAM", metric="top1_loc").value
    50.0
    """
    if not evidences or len(evidences) != len(heldouts):
        raise ValueError(f"need one held-out evidence each, got {len(evidences)} and {len(heldouts)}")
    if any(not np.array_equal(e.ids, evidences[0].ids) for e in evidences):
        raise ValueError("the evidences are of different images or in another order; seeds must share images")
    per_image = []
    for evidence, heldout in zip(evidences, heldouts, strict=True):
        score = hits(evidence, heldout, variant, metric, criterion).astype(np.float64)
        if reference is not None:
            score -= hits(evidence, heldout, reference, metric, criterion)
        per_image.append(100 * score)
    return bootstrap(name, per_image, unit="%", seeds=seeds, tolerance=tolerance)


def threshold_transfer(
    evidence: Evidence,
    heldout: Evidence,
    variant: str,
    sizes: Sequence[int] = (5, 10, 20, 50, 100, 200, 500),
    draws: int = 200,
    criterion: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """GT-known (%) against the number of held-out images that chose the threshold.

    For each size, `draws` random subsets of the held-out images choose a threshold. Columns: images,
    gt_known (mean over draws), low, high (2.5 and 97.5 % of draws), oracle (best threshold on the scored
    images).

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> rows = example_evidence()
    >>> threshold_transfer(rows, rows, "CAM", sizes=[2], draws=3).iloc[0].tolist()
    [2.0, 100.0, 100.0, 100.0, 100.0]
    """
    _check_same_sweep(evidence, heldout)
    test = 100 * (evidence.iou(variant) >= criterion).mean(0)  # (T,)
    pool = torch.from_numpy(heldout.iou(variant))
    rng, curve = np.random.default_rng(seed), []
    for size in sizes:
        if not 0 < size <= len(heldout):
            raise ValueError(f"sizes must lie in 1..{len(heldout)}, the held-out images, got {size}")
        picks = (torch.from_numpy(rng.choice(len(heldout), size, replace=False)) for _ in range(draws))
        chosen = [select_threshold(pool[p], heldout.thresholds.tolist(), criterion=criterion) for p in picks]
        low, high = np.quantile(test[chosen], [0.025, 0.975])
        curve.append((size, test[chosen].mean(), low, high, test.max()))
    return pd.DataFrame(curve, columns=["images", "gt_known", "low", "high", "oracle"])


def official_rows(
    evidence: Evidence, variant: str, *, batch_size: int, tiny: bool = False, position: int = 0
) -> pd.DataFrame:
    """What each defect of the official code, alone, does to GT-known (%) at a kept threshold (0.2).

    Rows: the correct value; then each defect alone; then all together; columns gt_known and change. The
    order of images matters to the running average: it should be the official list's, sorted by class.

    Parameters
    ----------
    batch_size : of the official run (PAPER.md section 3.4)
    tiny : whether boxes are read as x y w h, as Tiny-ImageNet's are
    position : which of `evidence.box_thresholds`

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> official_rows(example_evidence(), "CAM", batch_size=1).round(1)["gt_known"].to_dict()
    ... # doctest: +ELLIPSIS
    {'correct': 100.0, 'unclamped IoU, sides + 1': 100.0, ...}
    """
    stored, resized, side = evidence.sizes
    boxes = torch.from_numpy(evidence.boxes[evidence.index(variant)][:, position]).double()  # (N, 4)
    truth = torch.from_numpy(evidence.truth).double()
    source = torch.from_numpy(evidence.stored_boxes).double()
    pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]).double() * (stored / 64)  # of a 64-pixel original
    misread = official_tiny_boxes(source - pixel)  # the list has inclusive corners

    def exact(given: Tensor) -> Tensor:  # the right transform, without the clip that the official code lacks
        return given * (resized / stored) - crop_start(resized, side)

    def shifted(given: Tensor) -> Tensor:
        return official_box_transform(given, (stored, stored), resized, side)

    def right(found: Tensor, true: Tensor) -> Tensor:
        return iou_with_truth(found[:, None], true)[:, 0]

    def unclamped(found: Tensor, true: Tensor) -> Tensor:
        empty = (found[:, 2:] <= found[:, :2]).any(1, keepdim=True)  # the official box of an empty map
        return official_iou(torch.where(empty, torch.tensor([0.0, 0.0, 1.0, 1.0]).double(), found), true)

    def share(iou: Tensor) -> float:
        return 100 * float((iou >= 0.5).double().mean())

    def running(iou: Tensor) -> float:
        return 100 * official_running_average(iou >= 0.5, batch_size)

    rows = {
        "correct": share(right(boxes, truth)),
        "unclamped IoU, sides + 1": share(unclamped(boxes, truth)),
        "average of running averages": running(right(boxes, truth)),
        "resize − 1, floored shift, no clip": share(right(boxes, shifted(source))),
    }
    if tiny:
        rows["boxes read as x y w h"] = share(right(boxes, exact(misread)))
    rows["all together"] = running(unclamped(boxes, shifted(misread if tiny else source)))
    change = {name: value - rows["correct"] for name, value in rows.items()}
    return pd.DataFrame({"gt_known": rows, "change": change})


def _tensors(evidence: Evidence, variant: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(evidence.iou(variant)), torch.from_numpy(evidence.correct(variant))


def _threshold(heldout: Evidence, variant: str, criterion: float) -> int:
    return select_threshold(
        torch.from_numpy(heldout.iou(variant)), heldout.thresholds.tolist(), criterion=criterion
    )


def _check_same_sweep(evidence: Evidence, heldout: Evidence) -> None:
    if not len(evidence) or not len(heldout):
        raise ValueError(f"evidence and held-out evidence need images, have {len(evidence)}, {len(heldout)}")
    if not np.array_equal(evidence.thresholds, heldout.thresholds):
        raise ValueError("evidence and held-out evidence were collected with different thresholds")
