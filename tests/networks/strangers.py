"""Ten networks as other people write them: the blocks of ten papers, in ten styles of Python.

None of them knows of halfmeg. They are small, so that all of them train in a test.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class LeNet5(nn.Module):
    """LeCun et al. 1998: two convolutions, three linear layers; flattens by `view`."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x):
        x = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.max_pool2d(torch.tanh(self.conv2(x)), 2)
        x = x.view(x.size(0), -1)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


class Inception(nn.Module):
    """Szegedy et al. 2015: branches of four kinds, concatenated."""

    class Block(nn.Module):
        def __init__(self, cin, c1, c3, c5, cp):
            super().__init__()
            self.b1 = nn.Conv2d(cin, c1, 1)
            self.b3 = nn.Sequential(
                nn.Conv2d(cin, c3 // 2, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(c3 // 2, c3, 3, padding=1),
            )
            self.b5 = nn.Sequential(
                nn.Conv2d(cin, c5 // 2, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(c5 // 2, c5, 5, padding=2),
            )
            self.bp = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(cin, cp, 1))

        def forward(self, x):
            return F.relu(torch.cat([self.b1(x), self.b3(x), self.b5(x), self.bp(x)], dim=1))

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(
            self.Block(16, 8, 16, 4, 4), nn.MaxPool2d(2), self.Block(32, 16, 24, 8, 8)
        )
        self.fc = nn.Linear(56, num_classes)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), (1, 1))
        return self.fc(torch.flatten(x, 1))


class Fire(nn.Module):
    def __init__(self, inplanes, squeeze, expand):
        super().__init__()
        self.squeeze = nn.Conv2d(inplanes, squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)

    def forward(self, x):
        x = torch.relu_(self.squeeze(x))
        return torch.cat([torch.relu(self.expand1x1(x)), torch.relu(self.expand3x3(x))], 1)


def squeezenet(num_classes: int, **kwargs):
    """Iandola et al. 2016: fire modules; the classifier is a convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.ReLU(inplace=True),
        Fire(16, 8, 16),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(32, 8, 24),
        nn.Dropout(0.5),
        nn.Conv2d(48, num_classes, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class PreActResNet(nn.Module):
    """He et al. 2016: BatchNorm and ReLU in front of each convolution."""

    def __init__(self, num_classes=10, depth=2, width=16):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            out = width * 2 if i else width
            self.blocks.append(
                nn.ModuleDict(
                    {
                        "bn1": nn.BatchNorm2d(width),
                        "conv1": nn.Conv2d(width, out, 3, 1, 1, bias=False),
                        "bn2": nn.BatchNorm2d(out),
                        "conv2": nn.Conv2d(out, out, 3, 1, 1, bias=False),
                        "short": nn.Conv2d(width, out, 1, bias=False)
                        if out != width
                        else nn.Identity(),
                    }
                )
            )
            width = out
        self.bn = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.conv(x)
        for b in self.blocks:
            y = F.relu(b["bn1"](x))
            x = b["conv2"](F.relu(b["bn2"](b["conv1"](y)))) + b["short"](y)
        return self.linear(F.relu(self.bn(x)).mean([2, 3]))


class ResNeXt(nn.Module):
    """Xie et al. 2017: grouped convolutions in a bottleneck."""

    def __init__(self, num_classes, cardinality=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.body = nn.Sequential(
            nn.Conv2d(32, 16, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=cardinality, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 1, bias=False),
            nn.BatchNorm2d(32),
        )
        self.out = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.out(F.avg_pool2d(x, x.shape[-1]).squeeze(-1).squeeze(-1))


def channel_shuffle(x, groups):
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018: half of the channels pass, then all are shuffled."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, 2, 1)
        self.branch = nn.Sequential(
            nn.Conv2d(12, 12, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 12, 3, 1, 1, groups=12),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 12, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(24, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        x1, x2 = x.chunk(2, dim=1)
        x = channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)
        return self.fc(x.mean(dim=(2, 3)))


class EfficientNet(nn.Module):
    """Tan and Le 2019: MBConv with squeeze-and-excite, SiLU and dropped paths."""

    def __init__(self, num_classes, in_channels=3, drop_path=0.1):
        super().__init__()
        self.drop_path = drop_path
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU()
        )
        self.expand = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.SiLU())
        self.dw = nn.Sequential(
            nn.Conv2d(64, 64, 5, 1, 2, groups=64, bias=False), nn.BatchNorm2d(64), nn.SiLU()
        )
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(64, 4, 1),
            nn.SiLU(),
            nn.Conv2d(4, 64, 1),
            nn.Sigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.dw(self.expand(x))
        y = self.project(y * self.se(y))
        if self.training:
            keep = 1 - self.drop_path
            y = y * torch.empty(x.shape[0], 1, 1, 1, device=x.device).bernoulli_(keep) / keep
        return self.head((x + y).mean((-2, -1)))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021: a class token, learned positions, torch's own encoder."""

    def __init__(self, num_classes, image_size, patch=8, dim=32):
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2 + 1, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 64, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.encoder(x)[:, 0])


class ConvNeXt(nn.Module):
    """Liu et al. 2022: depthwise 7×7, LayerNorm over channels, a scaled branch of two linears."""

    def __init__(self, num_classes: int, dim: int = 24, layer_scale: float = 1e-6):
        super().__init__()
        self.stem = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(layer_scale * torch.ones(1, dim, 1, 1))
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y)))).permute(0, 3, 1, 2)
        return self.head((x + self.gamma * y).mean([-2, -1]))


class MlpMixer(nn.Module):
    """Tolstikhin et al. 2021: linear layers over the patches, then over the channels."""

    def __init__(self, *, image_size=32, patch_size=8, dim=32, num_classes=10):
        super().__init__()
        self.patch_size = patch_size
        n = (image_size // patch_size) ** 2
        self.embed = nn.Linear(3 * patch_size**2, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))
        self.channels = nn.Sequential(nn.Linear(dim, 64), nn.GELU(), nn.Linear(64, dim))
        self.head = nn.Linear(dim, num_classes)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1]))

    def forward(self, img):
        x = F.unfold(img, self.patch_size, stride=self.patch_size).transpose(1, 2)
        x = self.embed(x)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(x.mean(dim=1))
