"""Ten small nets of PyTorch, as people export them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn


class Net(NamedTuple):
    """How to make a net, the shape of one example, and its number of classes."""

    make: Callable[[], Any]
    shape: tuple[int, ...]
    class_count: int


def _separable(inner: int, outer: int, stride: int) -> list[Any]:
    return [
        nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU6(),
        nn.Conv2d(inner, outer, 1, bias=False),
        nn.BatchNorm2d(outer),
        nn.Hardswish(),
    ]


class _Recurrent(nn.Module):  # type: ignore[misc]
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(32, 6)

    def forward(self, x: Any) -> Any:
        states, _ = self.layer(x)
        return self.head(states[:, -1])


class _Transformer(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.out = nn.Linear(32, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.feed = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Any) -> Any:
        h = self.embed(x)
        q, k, v = (part(h).reshape(h.shape[0], -1, 4, 8).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(2, 3) / 8**0.5, dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(h.shape[0], -1, 32)
        h = self.norm1(h + self.out(mixed))
        h = self.norm2(h + self.feed(h))
        return self.head(h.mean(dim=1))


class _EncoderLayer(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x).mean(dim=1))


class _Residual(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.first(x))
        h = torch.relu(h + self.b(torch.relu(self.a(h))))
        return self.head(h.mean(dim=(2, 3)))


def _lenet() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def _fedavg_cnn() -> Any:
    """The CNN of McMahan et al., "Communication-Efficient Learning", AISTATS 2017: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def _windows_cnn() -> Any:
    return nn.Sequential(
        nn.Conv1d(9, 32, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool1d(4), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 6),
    )  # fmt: skip


def _mobile() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        *_separable(8, 16, 1), *_separable(16, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 7),
    )  # fmt: skip


def _perceptron() -> Any:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


NETS: Mapping[str, Net] = {
    "MLP": Net(_perceptron, (64,), 10),
    "LeNet": Net(_lenet, (1, 28, 28), 10),
    "FedAvg CNN": Net(_fedavg_cnn, (1, 28, 28), 10),
    "depthwise CNN": Net(_mobile, (3, 16, 16), 7),
    "1-D CNN": Net(_windows_cnn, (9, 128), 6),
    "GRU": Net(lambda: _Recurrent(nn.GRU(9, 32, batch_first=True)), (16, 9), 6),
    "LSTM": Net(lambda: _Recurrent(nn.LSTM(9, 32, batch_first=True)), (16, 9), 6),
    "transformer": Net(_Transformer, (12, 8), 5),
    "TransformerEncoderLayer": Net(_EncoderLayer, (10, 16), 5),
    "residual net": Net(_Residual, (3, 12, 12), 4),
}
