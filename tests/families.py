"""Families of networks and the way their maps are had: README.md shows them, test_explain.py tries them.

python tests/families.py        prints the table
"""

TORCHVISION = {
    "linear": "resnet18 resnext50_32x4d densenet121 efficientnet_b0 regnet_y_400mf shufflenet_v2_x0_5 "
    "mobilenet_v2 mnasnet0_5 swin_t swin_v2_t",
    "norm": "convnext_tiny",
    "gradient": "vit_b_16 mobilenet_v3_small vgg11_bn alexnet squeezenet1_1 maxvit_t",
}
TIMM = {
    "linear": "resnet10t regnetx_002 efficientnet_lite0 repvgg_a0 fastvit_t8 nextvit_small mixer_s32_224 "
    "swin_tiny_patch4_window7_224 vit_base_patch16_gap_224",
    "norm": "convnext_atto edgenext_xx_small poolformer_s12 tiny_vit_5m_224 eva02_tiny_patch14_224",
    "gradient": "vit_tiny_patch16_224 mobilenetv3_small_050 mobilenetv4_conv_small ghostnet_050 caformer_s18 "
    "hgnetv2_b0",
}
ONE_SIZE = "vit_ maxvit mixer swin_tiny tiny_vit eva02".split()  # for images of one size only
WORDS = {
    "linear": ("mean of the maps, one linear layer", "exact"),
    "norm": ("mean, layer norm, linear layer", "exact, the norm being affine within one image"),
    "gradient": ("a hidden layer, a convolution or a class token between", "gradient of the log odds"),
}


def families(library: dict[str, str]) -> list[tuple[str, str]]:
    """Each network with its way."""
    return [(name, way) for way, names in library.items() for name in names.split()]


def table() -> str:
    """The table of the README."""
    lines = ["| between maps and logits | map | torchvision | timm |", "|---|---|---|---|"]
    for way, (between, how) in WORDS.items():
        cells = [", ".join(f"`{name}`" for name in library[way].split()) for library in (TORCHVISION, TIMM)]
        lines.append(f"| {between} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
