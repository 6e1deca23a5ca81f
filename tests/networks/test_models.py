from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import COSTLY, NETWORKS, ONE_OF_A_FAMILY, REPEATED, slow_where
from torch import nn

from halfmeg.networks.he2015 import (
    BasicBlock,
    CifarResNet,
    convert_public_resnet,
    load_public_resnet,
)
from halfmeg.networks.layers import Conv2d, SqueezeExcite, UnitBatchNorm2d
from halfmeg.networks.protocol import body_parameters
from halfmeg.networks.study import ResBlock
from halfmeg.networks.summary import count_macs
from halfmeg.networks.table import MODELS, build_model
from halfmeg.networks.whitened import PoolStage, WhitenedNet, WhitenedResNet

PUBLISHED = {  # name: (body parameters as published, all parameters)
    "cnn": (65_568, 81_578),
    "resnet": (485_952, 1_020_490),
    "resnet-linear": (485_952, 491_082),
    "resnet-shared": (485_952, 491_082),
}
HE_2015 = {"resnet20": 269_722, "resnet32": 464_154}


@pytest.mark.parametrize("name", ONE_OF_A_FAMILY)
@pytest.mark.parametrize("num_classes", [pytest.param(2, marks=pytest.mark.slow), 10])
def test_output_shape_and_a_gradient_for_every_parameter(name: str, num_classes: int) -> None:
    model = build_model(name, num_classes)
    logits = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, num_classes)
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_each_row_states_ram_and_flash() -> None:
    missing = [name for name, row in MODELS.items() if not (row.ram_bytes and row.flash_bytes)]
    assert not missing, "`halfmeg summary NAME` prints them"


@pytest.mark.parametrize(("name", "counts"), PUBLISHED.items())
def test_parameters_of_the_study(name: str, counts: tuple[int, int]) -> None:
    model = build_model(name)
    body = sum(parameter.numel() for parameter in body_parameters(model, 32))
    assert (body, sum(p.numel() for p in model.parameters())) == counts


@pytest.mark.parametrize(("name", "count"), HE_2015.items())
def test_parameters_of_he_et_al(name: str, count: int) -> None:
    model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) == count
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) + 1 == int(name.removeprefix("resnet"))  # and the linear layer


def test_every_convolution_of_the_study_has_a_bias() -> None:
    for name in PUBLISHED:
        for module in build_model(name).modules():
            assert not isinstance(module, nn.Conv2d) or module.bias is not None


def test_shared_blocks_are_applied_twice_with_the_same_weights() -> None:
    model = build_model("resnet-shared").eval()
    blocks = [layer for layer in model.layers if isinstance(layer, ResBlock)]  # type: ignore[union-attr]
    assert [blocks[i] is blocks[i + 1] for i in (0, 2, 4)] == [True] * 3
    once = build_model("resnet-linear").eval()
    kept = {id(layer): layer for layer in model.layers}  # type: ignore[union-attr]
    once.load_state_dict(nn.ModuleList(kept.values()).state_dict(prefix="layers."))
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(once(images), model(images))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kernel", "padding", "size"), [(3, 1, 16), (3, 1, 9), (5, 2, 8), (1, 0, 8)]
)
def test_the_strided_convolution_has_torchs_gradients(bias, kernel, padding, size) -> None:
    torch.manual_seed(0)
    ours = Conv2d(16, 24, kernel, 2, padding, bias=bias).double()
    theirs = nn.Conv2d(16, 24, kernel, 2, padding, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        x = torch.randn(
            3, 16, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        )
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = layer(x)
        y.sin().sum().backward()
        results.append([y, x.grad, *(p.grad for p in layer.parameters())])
    assert type(ours(x).grad_fn).__name__ == "_StridedConvolutionBackward"
    assert type(ours.eval()(x).grad_fn).__name__ == "ConvolutionBackward0"
    for mine, other in zip(*results, strict=True):
        assert torch.allclose(mine, other, atol=1e-10)


def test_the_strided_convolution_trains_in_bf16() -> None:
    layer = Conv2d(16, 24, 3, 2, 1)
    x = torch.randn(4, 16, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_option_a_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = BasicBlock(16, 32, stride=2).eval()
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    x = torch.rand(1, 16, 8, 8)
    y = block(x)
    assert y.shape == (1, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_seed_builds_the_same_network(name: str) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_model(name).state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("resnet-20",), ["'resnet-20'", "did you mean 'resnet20'", "cnn, resnet"]),
        (("cnn", 1), ["num_classes=1", "2 or more"]),
        (("cnn", 10, 15), ["image_size=15", "16 or more"]),
        (("resnet", 10, (64, 8)), ["image_size=64x8", "9 or more"]),
        (("resnet20", 10, 4), ["image_size=4", "8 or more"]),
        (("sprint", 10, 8), ["image_size=8", "9 or more"]),
    ],
)
def test_mistakes_name_the_value(arguments: tuple[str, int, int], parts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        build_model(*arguments)
    assert all(part in str(caught.value) for part in parts)


def test_he_networks_take_other_image_sizes() -> None:
    assert build_model("resnet20", 5, 64)(torch.randn(2, 3, 64, 64)).shape == (2, 5)


class PublicBlock(nn.Module):
    """A block as other projects name its parts."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.pad = stride, (planes - in_planes) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        zeros = short.new_zeros(len(x), self.pad, *short.shape[2:])
        return torch.relu(out + torch.cat([zeros, short, zeros], 1))


class PublicResNet(nn.Module):
    """ResNet-20 written independently, with the names that public checkpoints have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[PublicBlock(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(PublicBlock(16, 32, 2),
                                    PublicBlock(32, 32, 1), PublicBlock(32, 32, 1))  # fmt: skip
        self.layer3 = nn.Sequential(
            PublicBlock(32, 64, 2), PublicBlock(64, 64, 1), PublicBlock(64, 64, 1)
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.nn.functional.avg_pool2d(x, 8).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "DataParallel"])
def test_a_public_checkpoint_loads_and_gives_the_same_logits(tmp_path, wrapped) -> None:
    public = PublicResNet()
    public.train()(torch.randn(8, 3, 32, 32))  # so that the running statistics are not trivial
    public.eval()
    prefix = "module." if wrapped else ""
    state = {prefix + key: value for key, value in public.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7} if wrapped else state, tmp_path / "r.th")
    ours = load_public_resnet(tmp_path / "r.th", "resnet20").eval()
    images = torch.randn(4, 3, 32, 32)
    assert torch.allclose(ours(images), public(images), atol=1e-5)


def test_what_is_no_public_resnet_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"'classifier\.weight' is none of a CIFAR ResNet"):
        convert_public_resnet({"classifier.weight": torch.zeros(1)})
    torch.save(PublicResNet().state_dict(), tmp_path / "r.th")
    with pytest.raises(ValueError, match="does not load as resnet32"):
        load_public_resnet(tmp_path / "r.th", "resnet32")
    with pytest.raises(ValueError, match="allowed: resnet20, resnet32"):
        load_public_resnet(tmp_path / "r.th", "cnn")
    (tmp_path / "text.th").write_text("no checkpoint")
    with pytest.raises(ValueError, match="does not load"):
        load_public_resnet(tmp_path / "text.th", "resnet20")


def test_public_names_cover_the_whole_network() -> None:
    converted = convert_public_resnet(PublicResNet().state_dict())
    assert converted.keys() == CifarResNet(20, 10).state_dict().keys()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameters_of_early_pooling() -> None:
    """By hand: whitening, convolutions, two numbers for each BatchNorm channel, gates, head."""
    sprint = (16 * 3 * 2 * 2 + 16) + 9 * (16 * 32 + 32 * 32 + 32 * 128 + 128 * 128 * 3)
    assert count(build_model("sprint")) == sprint + 2 * 2 * (32 + 128 + 128) + 128 * 10
    whole = WhitenedNet(12, (32, 128, 128), 2, 10, residual=False, bn_momentum=0.4)
    assert count(whole) == 498_104  # the reference's own count at these widths
    widths, before, gated = (32, 88, 104), 24, (24 * 3 * 2 * 2 + 24) + 104 * 10
    for width in widths:
        hidden = max(8, width // 8)
        gated += 9 * (before * width + 2 * width * width) + 3 * 2 * width
        gated += width * hidden + hidden + hidden * width + width
        before = width
    assert count(build_model("whitened()")) == gated


def test_record_passes_images_on_at_first() -> None:
    widths, depths = (32, 64, 96), (1, 2, 2)
    model = build_model("record").eval()
    assert isinstance(model, WhitenedResNet)
    before, params = 24, (24 * 3 * 2 * 2 + 24) + 96 * 10
    macs = 32**2 * 24 * 3 * 2 * 2 + 96 * 10
    convolutions = [(24, 32, 32)]
    before = 32
    for width, depth, side in zip(widths, depths, (32, 16, 8), strict=True):
        for _ in range(depth):
            convolutions += [(before, width, side), (width, width, side)]
            hidden = max(8, width // 8)
            params += 2 * width * hidden + hidden + width
            macs += 2 * width * hidden
            before = width
    params += sum(9 * a * b + 2 * b for a, b, _ in convolutions)
    macs += sum(9 * a * b * side**2 for a, b, side in convolutions)
    assert count(model) == params == 468_808 == count(build_model("whitened-residual()"))
    assert count_macs(model) == macs
    x = torch.rand(2, 32, 9, 7)
    first, halving = model.blocks[0], model.blocks[1]
    with torch.no_grad():
        assert torch.equal(first.conv2(first.conv1(x)), x)
        assert torch.equal(halving.conv1(x)[:, :32], x[:, :, ::2, ::2])
        assert halving(x).shape == (2, 64, 5, 4)  # as many as the convolution has


@pytest.mark.parametrize(
    ("stem", "depth1", "depth2", "expansion"), [(12, 1, 2, 2), (8, 2, 3, 4), (16, 1, 1, 2)]
)
def test_a_whitened_mobile_network_counts_as_its_layers_do(
    stem: int, depth1: int, depth2: int, expansion: int
) -> None:
    settings = f"stem={stem},depth1={depth1},depth2={depth2},expansion={expansion}"
    model = build_model(f"whitened-mobile({settings})")
    params = 24 * 12 + 24 + 48 * 10  # the whitening layer has a bias, the head has none
    macs = 32**2 * 24 * 12 + 48 * 10
    convolutions = [(24, stem, 32)]
    others = [(32, 32, 16)] * (depth1 - 1)
    for before, width, side in [(stem, 32, 16), *others, (32, 48, 8)]:
        convolutions += [(before, width, side), (width, width, side)]
        params += 2 * width * 8 + 8 + width
        macs += 2 * width * 8
    params += sum(9 * a * b + 2 * b for a, b, _ in convolutions)
    macs += sum(9 * a * b * side**2 for a, b, side in convolutions)
    hidden = 48 * expansion
    params += depth2 * (2 * 48 * hidden + 9 * hidden + 4 * hidden + 2 * 48 + 2 * 48 * 8 + 8 + 48)
    macs += depth2 * ((2 * 48 + 9) * hidden * 8**2 + 2 * 48 * 8)
    assert count(model) == params
    assert count_macs(model) == macs


def test_a_whitened_mobile_network_never_has_fewer_channels_behind() -> None:
    for narrow, wide in (("width1=48,width2=8", "width1=48,width2=48"),
                         ("stem=16,width1=8,width2=8", "stem=16,width1=16,width2=16")):  # fmt: skip
        assert count(build_model(f"whitened-mobile({narrow})")) == count(
            build_model(f"whitened-mobile({wide})")
        )
    model = build_model("whitened-mobile(width1=8,width2=16)", 10, (26, 21)).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 26, 21)).shape == (2, 10)


@pytest.mark.parametrize("name", ["sprint", "record"])
@pytest.mark.parametrize("budget", [50_000, 100_000, 200_000, 350_000, 500_000, 2_000_000])
def test_a_budget_picks_the_widest_network_below_it(name: str, budget: int) -> None:
    params = count(build_model(name, budget=budget))
    assert 0.8 * budget < params < budget


def test_a_budget_that_nothing_fits_or_that_does_not_apply_is_refused() -> None:
    with pytest.raises(ValueError, match="budget=1000 is too small"):
        build_model("record", budget=1000)
    with pytest.raises(ValueError, match="budget=100000 is not for cnn"):
        build_model("cnn", budget=100_000)


def test_whitening_makes_the_patches_white() -> None:
    model = build_model("record")
    assert isinstance(model, WhitenedResNet)
    noise = torch.randn(64, 3, 33, 33)
    images = noise[:, :, 1:, 1:] + noise[:, :, 1:, :-1] + 0.3 * noise[:, :, :-1, 1:]  # correlated
    model.prepare(images)
    with torch.no_grad():
        responses = model.whitening(images).transpose(0, 1).flatten(1).double()  # 24 × positions
    first, second = responses[:12], responses[12:]
    assert torch.equal(first, -second)
    covariance = first @ first.T / first.shape[1]
    assert torch.allclose(covariance, torch.eye(12).double(), atol=0.01)
    assert not any(parameter.requires_grad for parameter in model.whitening.parameters())

    fewer = build_model("sprint")
    assert isinstance(fewer, WhitenedNet)
    fewer.prepare(images)  # its 8 filters are those of the largest variance
    first = model.whitening.weight[:12].flatten(1)
    variances = 1 / first.square().sum(1)
    assert torch.equal(variances, variances.sort().values)
    assert torch.equal(fewer.whitening.weight[:8], model.whitening.weight[4:12])
    assert torch.equal(fewer.whitening.weight[8:], -model.whitening.weight[4:12])


def test_whitening_of_gray_images_sees_what_varies_and_no_rounding() -> None:
    model = build_model("record")
    assert isinstance(model, WhitenedResNet)
    gray = torch.randn(64, 1, 32, 32).expand(-1, 3, -1, -1)
    model.prepare(gray)
    with torch.no_grad():
        responses = model.whitening(gray).transpose(0, 1).flatten(1)
    assert torch.allclose(responses.std(1), torch.ones(24), atol=0.05)


@pytest.mark.parametrize(
    "block",
    [
        ResBlock(4),
        BasicBlock(4, 8, 2),
        SqueezeExcite(8),
        PoolStage(3, 4, 3, residual=True, bn_momentum=0.1),
        PoolStage(3, 4, 2, residual=False, bn_momentum=0.1),
    ],
    ids=lambda block: type(block).__name__,
)
def test_gradients_of_each_block_equal_differences_in_float64(block: nn.Module) -> None:
    torch.manual_seed(0)
    block = block.double()
    in_channels = next(m for m in block.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    channels = in_channels.weight.shape[1]
    x = torch.randn(2, channels, 4, 4, dtype=torch.float64, requires_grad=True)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    names = [name for name, p in block.named_parameters() if p.requires_grad]

    def run(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    values = [dict(block.named_parameters())[name].detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (x, *values))


@pytest.mark.parametrize("size", [2, 3, 6, 7])
def test_a_stage_leaves_out_only_what_the_pooling_does(size: int) -> None:
    stage = PoolStage(4, 8, 2, residual=False, bn_momentum=0.1).double()
    nn.init.normal_(stage.conv1.weight)
    x = torch.randn(3, 4, size, size, dtype=torch.float64)
    pooled = F.max_pool2d(F.conv2d(x, stage.conv1.weight, padding=1), 2)
    whole = F.silu(stage.rest(F.silu(stage.bn1(pooled))))
    assert torch.allclose(stage(x), whole)


def test_unit_batchnorm_keeps_its_scale() -> None:
    layer = UnitBatchNorm2d(4, 0.1)
    layer(torch.randn(8, 4, 5, 5)).square().sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


@pytest.mark.parametrize("name", slow_where((*COSTLY, *REPEATED)))
def test_the_smallest_images_that_fit(name: str) -> None:
    smallest = MODELS[name].smallest
    for shape in ((3, smallest, smallest), (1, smallest, smallest + 5)):
        logits = build_model(name, 10, shape)(torch.randn(2, *shape))
        assert logits.shape == (2, 10)
