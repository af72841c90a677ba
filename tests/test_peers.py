"""Our maps beside torchcam's and pytorch-grad-cam's, where one is the other by arithmetic."""

import pytest
import torch
import torchvision
from torch import nn

from infocam_utils import InfoCAM

K = 6


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=K).eval()
    nn.init.normal_(model.fc.weight, std=0.02)  # theirs weighs by probabilities, which must not vanish
    return model, torch.randn(3, 3, 96, 96), [0, 3, 5]


def scaled(maps):
    """What a library shows: the positive part of each map, its largest value 1."""
    maps = maps.detach().clamp_min(0)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def test_cam_is_torchcams_without_its_scaling(network):
    methods = pytest.importorskip(
        "torchcam.methods", reason="torchcam is optional (pip install 'infocam[peers]')"
    )
    model, images, labels = network
    with methods.CAM(model, "layer4", "fc") as extractor, torch.inference_mode():
        model(images)
        (theirs,) = extractor(labels, normalized=False)
    ours = InfoCAM(model, against=None)(images, labels).maps
    torch.testing.assert_close(ours, theirs.clone(), rtol=1e-4, atol=1e-5)


def test_the_mean_of_others_is_finer_cam_with_all_references(network):
    methods = pytest.importorskip(
        "torchcam.methods", reason="torchcam is optional (pip install 'infocam[peers]')"
    )
    model, images, labels = network
    with methods.FinerCAM(model, "layer4", gamma=1.0, num_references=K - 1) as extractor:
        (theirs,) = extractor(labels, model(images), normalized=False)
    ours = InfoCAM(model, against="others")(images, labels).maps
    torch.testing.assert_close(scaled(ours), scaled(theirs), rtol=1e-3, atol=1e-4)
    assert (ours < 0).any(), "what speaks for the others, which theirs cuts off"


def test_a_chosen_rival_is_pytorch_grad_cams_finer_cam_of_one_class(network):
    peer = pytest.importorskip(
        "pytorch_grad_cam", reason="grad-cam is optional (pip install 'infocam[peers]')"
    )
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    model, images, labels = network
    ours = InfoCAM(model, against=2)(images, labels).maps
    with peer.GradCAM(model, [model.layer4]) as extractor:
        targets = [FinerWeightedTarget(label, [2], 1.0) for label in labels]
        theirs = torch.from_numpy(extractor(images, targets))
    big = nn.functional.interpolate(scaled(ours)[:, None], 96, mode="bilinear", align_corners=False)[:, 0]
    some = [i for i, one in enumerate(big) if float(one.std()) > 0]
    assert len(some) >= 2
    for i in some:
        both = torch.stack([big[i].flatten(), theirs[i].flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.99


def test_the_gradient_way_is_grad_cam_of_the_difference(network):
    methods = pytest.importorskip(
        "torchcam.methods", reason="torchcam is optional (pip install 'infocam[peers]')"
    )
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v3_small(num_classes=K).eval()
    nn.init.normal_(model.classifier[-1].weight, std=0.5)
    images, labels = network[1], network[2]
    found = InfoCAM(model, against=2)(images, labels)
    with methods.GradCAM(model, found.layer) as extractor:
        logits = model(images)
        targets = [lambda f, y=label: f[y] - f[2] for label in labels]
        (theirs,) = extractor(scores=logits, targets=targets, normalized=False)
    torch.testing.assert_close(scaled(found.maps), scaled(theirs), rtol=1e-3, atol=1e-4)
