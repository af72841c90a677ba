"""The committed records of real runs recompute from the committed rows of evidence, without a network."""

from pathlib import Path

import pytest

from infocam_utils import evidence, scores
from infocam_utils.records import read_book

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
