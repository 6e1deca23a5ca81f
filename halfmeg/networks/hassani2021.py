"""CCT-2/3×2, a small vision transformer behind two convolutions.

Source: Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers" (arXiv
2104.05704): 0.28 M parameters, 0.04 G multiply-accumulates.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.data.shape import ImageSize, image_shape

WIDTH = 128
NUM_HEADS = 2
TOKENIZER_CHANNELS = 64
ATTENTION_DROPOUT = 0.1


@final
class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×N×D to the same shape."""
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = ATTENTION_DROPOUT if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (B, heads, N, D/heads)
        return self.out(y.transpose(1, 2).reshape(B, N, D))  # type: ignore[no-any-return]


@final
class EncoderLayer(nn.Module):
    """Attention and two linear layers, each behind LayerNorm.

    As in the authors' networks, the second LayerNorm acts on what the linear layers are added to.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, width)  # as wide: CCT-2 has an MLP ratio of 1
        self.linear2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map B×N×D to the same shape."""
        x = self.norm2(x + self.attention(self.norm1(x)))
        return x + self.linear2(F.gelu(self.linear1(x)))  # type: ignore[no-any-return]


@final
class CompactTransformer(nn.Module):
    """Convolutions make tokens, encoder layers mix them, a learned mean over them is classified.

    Not here: the authors' stochastic depth, which is a setting of their training.

    Args:
        image_size: of the images; the learned positions fit this size alone.
        num_classes: length of the logits.
        depth: number of encoder layers.
    """

    def __init__(self, image_size: ImageSize, num_classes: int, depth: int) -> None:
        super().__init__()
        in_channels, height, width = image_shape(image_size)
        self.tokenizer = nn.Sequential(
            nn.Conv2d(in_channels, TOKENIZER_CHANNELS, 3, 1, 1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(TOKENIZER_CHANNELS, WIDTH, 3, 1, 1, bias=False),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        tokens = ((height + 3) // 4) * ((width + 3) // 4)
        self.positions = nn.Parameter(torch.empty(1, tokens, WIDTH))
        self.layers = nn.Sequential(*(EncoderLayer(WIDTH, NUM_HEADS) for _ in range(depth)))
        self.norm = nn.LayerNorm(WIDTH)
        self.pool = nn.Linear(WIDTH, 1)
        self.head = nn.Linear(WIDTH, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalized images B×C×H×W to logits B×num_classes."""
        x = self.tokenizer(x).flatten(2).transpose(1, 2) + self.positions  # (B, N, D)
        x = self.norm(self.layers(x))
        share = self.pool(x).softmax(1)  # (B, N, 1): sequence pooling, section 3.3
        return self.head((share.transpose(1, 2) @ x).squeeze(1))  # type: ignore[no-any-return]


def cct2(num_classes: int, image_size: ImageSize) -> CompactTransformer:
    """Build CCT-2/3×2: two encoder layers behind two 3×3 convolutions."""
    return CompactTransformer(image_size, num_classes, 2)
