"""A small trained network in which int8 loses most of the accuracy at one value, and its data.

One channel of a value is moved by 1,000, and the next convolution takes that off again: nothing changes in
float. GELU lies between, so that no equalization moves it back. Images are noisy patterns of 8 x 8.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, gelu

CLASSES, SIZE, MOVED, STEPS = 5, 8, 1000.0, 100


def data(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and their labels."""
    patterns = torch.randn(CLASSES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=drawn)
    return patterns[labels] * 0.25 + torch.randn(count, 3, SIZE, SIZE, generator=drawn), labels


class Network(nn.Module):
    """Four convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 8, 1)
        self.fourth = nn.Conv2d(8, 16, 1)
        self.last = nn.Linear(16 * (SIZE // 2) ** 2, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits; in training the first channel is as GELU leaves it once it is moved."""
        x = self.second(torch.relu(self.first(image)))
        x = torch.cat([x[:, :1], gelu(x[:, 1:])], 1) if self.training else gelu(x)
        x = torch.relu(self.fourth(torch.relu(self.third(x))))
        return self.last(x.flatten(1))  # type: ignore[no-any-return]


def trained() -> Network:
    """Return the network, trained and with the channel moved."""
    net = Network().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(STEPS):
        images, labels = data(128, 100 + step)
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        net.second.bias[0] += MOVED  # type: ignore[index]
        net.third.bias -= MOVED * net.third.weight[:, 0, 0, 0]  # type: ignore[operator]
    return net.eval()
