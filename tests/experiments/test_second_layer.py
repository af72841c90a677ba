"""The second layer: its Gaussian against SciPy's and NumPy's, its place in a network, the product by hand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import multivariate_normal
from torch import nn

from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.backbones import classifier
from infocam_utils.experiments import second_layer


def test_the_distance_is_the_self_information_of_a_place_but_for_a_constant():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator)
    features = torch.einsum("dc,bchw->bdhw", mixing, torch.randn(40, 5, 6, 7, generator=generator)) + 3
    layer = second_layer.fit(2, features.split(16))
    places = features.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy()
    covariance = np.cov(places.T, bias=True)
    covariance += 0.01 * covariance.diagonal().mean() * np.eye(5)
    nats = -multivariate_normal(places.mean(0), covariance).logpdf(places)
    constant = 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    found = 0.5 * layer.distance(features).double().square().flatten().numpy() + constant
    assert found == pytest.approx(nats, rel=1e-4)
    batches_do_not_matter = second_layer.fit(2, [features])
    torch.testing.assert_close(layer.whitening, batches_do_not_matter.whitening)


@pytest.mark.parametrize(
    ("backbone", "side", "position", "sides"),
    [("mobilenet_v2", 225, 13, (15, 8)), ("small_resnet", 64, 4, (16, 8)), ("resnet18", 224, 6, (14, 7))],
)
def test_the_layer_has_twice_the_resolution_and_both_come_from_one_pass(backbone, side, position, sides):
    model = classifier(backbone, 3).eval()
    assert second_layer.position_of(model, side) == position
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        middle, last = second_layer.forward_both(model, position, images)
        assert (middle.shape[-1], last.shape[-1]) == sides
        assert torch.equal(middle, model.features[: position + 1](images))
        assert torch.equal(last, model.forward_features(images))


def test_networks_without_one_are_told():
    assert second_layer.position_of(classifier("paper_mnist_cnn", 10), 28) is None
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    assert second_layer.position_of(Classifier(body, nn.Linear(4, 2)), 16) is None, "one resolution only"
    assert second_layer.position_of(Classifier(body[0], nn.Linear(4, 2)), 16) is None, "no sequence"


def test_the_product_is_of_unit_maps_the_finer_one_smoothed():
    rng = np.random.default_rng(0)
    maps, distance = rng.normal(size=(3, 4, 4)), rng.random((3, 4, 4))
    found = second_layer.product(torch.from_numpy(maps), torch.from_numpy(distance)).numpy()
    inner = uniform_filter(distance, (1, 3, 3))[:, 1:-1, 1:-1]  # where no border counts

    def unit(x):
        return (x - x.min((1, 2), keepdims=True)) / np.ptp(x, (1, 2), keepdims=True)

    for one, map_, other in zip(found, unit(maps), inner, strict=True):  # equal up to the scale to [0, 1]
        share = one[1:-1, 1:-1] / np.maximum(map_[1:-1, 1:-1], 1e-9)
        there = map_[1:-1, 1:-1] > 0
        assert np.corrcoef(share[there], other[there])[0, 1] == pytest.approx(1, abs=1e-9)
    scaled = second_layer.product(torch.from_numpy(5 * maps - 7), torch.from_numpy(3 * distance + 1)).numpy()
    assert scaled == pytest.approx(found)
    flat = second_layer.product(torch.ones(1, 2, 2), torch.ones(1, 4, 4))
    assert flat.eq(0).all(), "nothing to tell, and no NaN"


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "at least one place, had 0"),
        ([torch.full((1, 2, 1, 2), torch.nan)], "finite features of at least one place, had 2"),
        ([torch.ones(1, 2, 2, 2)], "all 4 places have the same features"),
    ],
)
def test_a_gaussian_of_nothing_is_refused(batches, said):
    with pytest.raises(ValueError, match=said):
        second_layer.fit(0, batches)
