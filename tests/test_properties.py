"""Identities and bounds on whatever Hypothesis finds: information, maps, boxes, results, store keys."""

import json
import math

import numpy as np
import pandas as pd
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from infocam_utils import cam, information
from infocam_utils.data import store
from infocam_utils.information import Estimate
from infocam_utils.localization import boxes_from_maps, iou_with_truth
from infocam_utils.reproduce import results

settings.register_profile("here", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("here")

logit = st.floats(-60, 60, width=32)
few, two_or_more = st.integers(1, 6), st.integers(2, 6)


@st.composite
def classified(draw, rows=few):
    """Logits (B, K), labels (B,) and class shares (K,)."""
    classes, count = draw(st.integers(2, 6)), draw(rows)
    logits = draw(
        st.lists(st.lists(logit, min_size=classes, max_size=classes), min_size=count, max_size=count)
    )
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    counts = draw(st.lists(st.integers(1, 10_000), min_size=classes, max_size=classes))
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return torch.tensor(logits, dtype=torch.float64), torch.tensor(labels), shares


@given(classified(), st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6))
def test_what_all_classes_share_says_nothing(batch, common):
    logits, _, shares = batch
    moved = logits + torch.tensor(common[: len(logits)], dtype=torch.float64)[:, None]
    before, after = (information.log_pc_softmax(f, shares) for f in (logits, moved))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-8)


@given(classified(), st.randoms(use_true_random=False))
def test_names_of_classes_do_not_matter(batch, random):
    logits, labels, shares = batch
    order = random.sample(range(len(shares)), len(shares))
    place = torch.empty(len(order), dtype=torch.int64)
    place[order] = torch.arange(len(order))
    a = information.mutual_information(logits, labels, shares).value
    b = information.mutual_information(logits[:, order], place[labels], shares[order]).value
    assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


@given(classified())
def test_a_pmi_is_below_its_ceiling_and_the_factors_average_to_one(batch):
    logits, labels, shares = batch
    pmi = information.pointwise_mutual_information(logits, shares)
    assert bool((pmi <= -shares.log() + 1e-9).all())
    torch.testing.assert_close((shares * pmi.exp()).sum(1), torch.ones(len(pmi), dtype=torch.float64))
    assert information.mutual_information(logits, labels, shares).value <= float(-shares.log().min()) + 1e-9


@given(classified())
def test_an_exact_posterior_reads_at_most_the_entropy(batch):
    logits, _, shares = batch
    posterior = (logits + shares.log()).softmax(
        1
    )  # of equally frequent inputs, with the shares that they have
    own = posterior.mean(0).clamp_min(1e-300)
    information_ = (posterior * (posterior.clamp_min(1e-300) / own).log()).sum(1).mean()
    assert -1e-9 <= float(information_) <= float(information.entropy(own / own.sum())) + 1e-9


@given(classified(two_or_more), st.data())
def test_parts_add_up_to_the_whole(batch, data):
    logits, labels, shares = batch
    cut = data.draw(st.integers(1, len(labels) - 1))
    whole = information.mutual_information(logits, labels, shares)
    parts: Estimate = information.mutual_information(
        logits[:cut], labels[:cut], shares
    ) + information.mutual_information(logits[cut:], labels[cut:], shares)
    assert math.isclose(parts.value, whole.value, rel_tol=1e-9, abs_tol=1e-9)
    assert parts.n == whole.n


@given(classified())
def test_float32_agrees_with_float64(batch):
    logits, _, shares = batch
    exact = information.log_pc_softmax(logits, shares)
    single = information.log_pc_softmax(logits.float(), shares)
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=2e-5)


@given(classified())
def test_a_decision_for_other_shares_and_back_is_the_decision(batch):
    logits, _, shares = batch
    other = torch.full_like(shares, 1 / len(shares))
    there = information.shift_prior(logits, shares, other, "softmax")
    back = information.shift_prior(there, other, shares, "softmax")
    torch.testing.assert_close(back.log_softmax(1), logits.log_softmax(1), rtol=0, atol=1e-9)


@st.composite
def pooled(draw):
    """Features (B, C, h, w), weights (K, C), labels (B,) and a common vector (C,), in whole eighths."""
    sizes = [draw(st.integers(1, 4)) for _ in range(4)]
    classes = draw(st.integers(2, 5))
    number = st.integers(-80, 80)

    def tensor(*shape):
        values = draw(st.lists(number, min_size=math.prod(shape), max_size=math.prod(shape)))
        return torch.tensor(values, dtype=torch.float64).view(shape) / 8

    labels = draw(st.lists(st.integers(0, classes - 1), min_size=sizes[0], max_size=sizes[0]))
    return tensor(*sizes), tensor(classes, sizes[1]), torch.tensor(labels), tensor(sizes[1])


@given(pooled(), st.sampled_from(["others", "least_likely", "runner_up"]))
def test_infocam_is_complete_and_knows_no_gauge(batch, against):
    features, weight, labels, vector = batch
    logits = features.mean((2, 3)) @ weight.T
    drawn = cam.info_cam(features, weight, labels, against, logits)
    rows = torch.arange(len(labels))
    rivals = cam.rival_classes(labels, len(weight), against, logits)
    others = (logits.sum(1) - logits[rows, labels]) / (len(weight) - 1)
    rival = others if rivals is None else logits.gather(1, rivals)[:, 0]
    torch.testing.assert_close(drawn.mean((1, 2)), logits[rows, labels] - rival)
    turned = cam.info_cam(features, weight + vector, labels, against, logits)
    torch.testing.assert_close(turned, drawn)


whole = st.integers(0, 50)
small_map = st.integers(2, 5).flatmap(
    lambda w: st.lists(st.lists(whole, min_size=w, max_size=w), min_size=2, max_size=5)
)


@given(small_map, st.sampled_from([0.25, 0.5, 0.7]), st.integers(1, 64), st.integers(-100, 100))
def test_boxes_know_neither_scale_nor_zero_of_a_map(values, level, scale, shift):
    one = torch.tensor(values, dtype=torch.float64)[None]
    a, b = (boxes_from_maps(m, 64, [level]) for m in (one, one * scale + shift))
    torch.testing.assert_close(a, b)


@given(small_map, st.sampled_from([0.3, 0.55]))
def test_a_box_lies_in_the_image_and_around_something(values, level):
    one = torch.tensor(values, dtype=torch.float64)[None]
    (x0, y0, x1, y1) = boxes_from_maps(one, 64, [level])[0, 0].tolist()
    if len(set(one.flatten().tolist())) == 1:
        assert (x0, y0, x1, y1) == (0, 0, 0, 0)
    else:
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64


@st.composite
def box(draw):
    x0, x1 = sorted((draw(whole), draw(whole)))
    y0, y1 = sorted((draw(whole), draw(whole)))
    assume(x0 < x1 and y0 < y1)
    return [float(v) for v in (x0, y0, x1, y1)]


@given(box(), box())
def test_iou_is_symmetric_and_counts_pixels(a, b):
    one, other = (torch.tensor([v]) for v in (a, b))
    share = float(iou_with_truth(one[:, None], other)[0, 0])
    assert math.isclose(share, float(iou_with_truth(other[:, None], one)[0, 0]), abs_tol=1e-6)
    grids = np.zeros((2, 51, 51), dtype=bool)
    for grid, (x0, y0, x1, y1) in zip(grids, (a, b), strict=True):
        grid[int(y0) : int(y1), int(x0) : int(x1)] = True
    assert math.isclose(share, (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum(), abs_tol=1e-6)


letters = st.characters(categories=["L", "N"], include_characters=" ,-_\"'")
name = st.text(letters, min_size=1, max_size=12) | st.sampled_from(["nan", "None", "NA", "true", "12", "1e5"])


@given(
    st.lists(
        st.tuples(name, st.floats(-1e6, 1e6, width=64)), min_size=1, max_size=4, unique_by=lambda r: r[0]
    )
)
def test_results_come_back_as_they_were_written(tmp_path_factory, made):
    rows = [
        {"dataset": dataset, "metric": "accuracy", "unit": "nats", "seed": seed, "value": value}
        for seed, (dataset, value) in enumerate(made)
    ]
    folder = tmp_path_factory.mktemp("out")
    path = results.write("03", pd.DataFrame(rows), parameters={"profile": "quick"}, output_dir=folder)
    back = results.read(path).rows
    assert [(row["dataset"], row["value"]) for row in back.to_dict("records")] == made


leaf = (
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
keys = st.dictionaries(st.text(min_size=1), leaf | st.lists(leaf, max_size=3), max_size=4)


@given(keys, keys)
def test_store_names_differ_when_any_field_differs(first, second):
    alike = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (store._name("x", first) == store._name("x", second)) == alike
    for field in first:
        changed = first | {field: [first[field], "changed"]}
        assert store._name("x", changed) != store._name("x", first)
