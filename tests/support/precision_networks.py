"""The networks of `precision_models`, untrained, small, and each of a kind that is deployed.

Enters: widths. Leaves: modules. A room of its own because nothing in it knows of data or training, and because saved
artifacts and spawned processes must find these classes by import.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 32
MOST_TOKENS = 24
CLASSES = 4


class Residual(nn.Module):
    """Two convolutions with BatchNorm, and a way round them that follows stride and width."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + self.shortcut(x)).relu()


class ResNet(nn.Module):
    """x: (batch, 1, 16, 16) -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layers = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 48, 2))
        self.head = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.pool(self.stem(x))).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values; `bias` is added to the scores."""

    def __init__(self, width: int, heads: int, *, biased: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=biased)
        self.out = nn.Linear(width, width, bias=biased)

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2: nn.Module = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VitBlock(nn.Module):
    """Attention and MLP, each behind its LayerNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """x: (batch, 1, 8, 8) -> (batch, 10), by patches of 2x2 pixels and a class token."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, 17, width))
        self.blocks = nn.ModuleList(VitBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Detour(nn.Module):
    """A linear layer as two: 1/scale of one whose outputs are `scale` times as large, turned and turned back."""

    def __init__(self, linear: nn.Linear, scale: float) -> None:
        super().__init__()
        width, hidden = linear.weight.shape
        self.wide = nn.Linear(hidden, width)
        self.narrow = nn.Linear(width, width, bias=False)
        turn = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0]
        with torch.no_grad():
            self.wide.weight.copy_(turn @ linear.weight.double() * scale)
            self.wide.bias.copy_(turn @ linear.bias.double() * scale)
            self.narrow.weight.copy_(turn.T / scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(self.wide(x))


class BertBlock(nn.Module):
    """Attention and MLP, each with a LayerNorm after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Attention(width, 4)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 2 * width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Module):
    """input_ids, attention_mask: (batch, tokens) int64 -> (batch, CLASSES); masked by float32's least, as is usual."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(MOST_TOKENS, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(BertBlock(width) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        x = self.norm(x)
        bias = torch.where(attention_mask[:, None, None] == 0, torch.finfo(x.dtype).min, 0.0).to(x.dtype)
        for block in self.blocks:
            x = block(x, bias)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Lstm(nn.Module):
    """x: (batch, 8, 8), row by row -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class RmsNorm(nn.Module):
    """x over the root of its mean square, written out."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Gated(nn.Module):
    """The MLP of llamas: one half gates the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """Attention and gated MLP, each behind its RMS norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = RmsNorm(width)
        self.attention = Attention(width, 4, biased=False)
        self.norm2 = RmsNorm(width)
        self.mlp = Gated(width, 2 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Llama(nn.Module):
    """x: (batch, 8, 8), a token for each row -> (batch, 10)."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, width)
        self.positions = nn.Parameter(torch.randn(1, 8, width))
        self.blocks = nn.ModuleList(LlamaBlock(width) for _ in range(depth))
        self.norm = RmsNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))
