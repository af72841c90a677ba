"""Which models are features → mean → linear, found by tracing; and that nothing of theirs is changed."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import Classifier, adapt, disagreement, evaluation_mode


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "mnasnet0_5"])
def test_stock_models_are_adapted_without_a_copy(name):
    torch.manual_seed(0)
    stock = torchvision.models.get_model(name, num_classes=6)
    model, x = adapt(stock), torch.randn(2, 3, 64, 64)
    assert model.training
    with evaluation_mode(stock, model), torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape[2:] == (2, 2)
        torch.testing.assert_close(model.linear(features.mean((2, 3))), stock(x))
    shared = {id(p) for p in stock.parameters()}
    assert {id(p) for p in model.parameters()} == shared


class Wild(nn.Module):
    """Its control flow depends on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3)))


def zero(linear: nn.Linear) -> nn.Linear:
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


def flat(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torchvision.models.squeezenet1_1, "SqueezeNet does not end in one nn.Linear"),
        (torchvision.models.alexnet, r"AlexNet's last layer sees \(1, 4096\)"),
        (torchvision.models.convnext_tiny, r"ConvNeXt's last layer sees \(1, 768, 1, 1\)"),
        (torchvision.models.mobilenet_v3_small, r"last layer sees \(1, 1024\)"),
        (Wild, "Wild cannot be traced"),
        (lambda: flat(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 2)), r"sees \(1, 8, 1, 1\)"),
        (lambda: flat(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2)), r"sees \(1, 8, 2, 2\)"),
        (lambda: flat(nn.Flatten(), nn.Linear(8 * 222 * 222, 2)), r"sees \(1, 8, 222, 222\)"),
        # one window of 200 cells out of 222: a mean of one cell, but not of the map
        (lambda: flat(nn.AvgPool2d(200), nn.Flatten(), nn.Linear(8, 2)), "off by"),
        (lambda: flat(nn.AvgPool2d(200), nn.Flatten(), zero(nn.Linear(8, 2))), "off by"),
    ],
)
def test_models_of_another_form_are_refused_with_the_remedy(model, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=rf"{message}.*Classifier\(features, linear\)"):
        adapt(model())


@pytest.mark.parametrize("size", [224, 100, 20, 21])
@pytest.mark.parametrize("pooling", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(3)])
def test_an_average_over_a_part_of_the_map_stays_with_the_features(pooling, size):
    """Cut away, it would be right where it divides the map, as in the probe, and wrong at odd maps."""
    torch.manual_seed(0)
    model = flat(nn.ReLU(), pooling, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    adapted, x = adapt(model), torch.randn(3, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(adapted.forward_features(x), model[:3](x))
        torch.testing.assert_close(adapted(x), model(x))


def test_pooling_in_two_calls_and_dropout_are_found():
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.out = nn.Conv2d(3, 8, 3), nn.Dropout(0.3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.drop(self.conv(x).flatten(2).mean(2)))

    adapted = adapt(Calls())
    assert adapted.forward_features(torch.zeros(1, 3, 9, 9)).shape == (1, 8, 7, 7)
    assert adapted.pool[2].p == 0.3


def test_a_head_that_starts_at_zero_is_accepted():
    stock = flat(nn.AdaptiveAvgPool2d(1), nn.Flatten(), zero(nn.Linear(8, 5)))
    adapted = adapt(stock)
    assert adapted.linear is stock[3]
    assert not stock[3]._forward_pre_hooks


def test_disagreement_is_relative_and_nothing_within_rounding():
    ones = torch.ones(1, 4)
    assert disagreement(ones + 1e-5, ones) == 0
    assert disagreement(ones + 1e-3, ones) == pytest.approx(1e-3, rel=1e-3)
    assert disagreement(ones.double() + 1e-5, ones.double()) == pytest.approx(1e-5)
    assert disagreement(ones.bfloat16() + 0.02, ones.bfloat16()) == 0
    assert disagreement(ones * torch.nan, ones) != 0


def test_adapting_a_classifier_or_anything_else():
    model = Classifier(nn.Conv2d(3, 4, 3), nn.Linear(4, 3))
    assert adapt(model) is model
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, was dict"):
        adapt({})


def test_a_network_for_images_of_one_size_is_checked_on_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.LayerNorm([4, 6, 6]), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(4, 2)
    )
    with pytest.raises(ValueError, match=r"fails on images \(1, 1, 224, 224\).*probe="):
        adapt(model)
    assert isinstance(adapt(model, probe=torch.randn(1, 1, 8, 8)), Classifier)


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    model = torchvision.models.resnet18(num_classes=3).train()
    model.layer1.eval()
    before = [m.training for m in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluation_mode(model):
        raise RuntimeError("inside" if not any(m.training for m in model.modules()) else "still training")
    assert [m.training for m in model.modules()] == before
