"""The transformer of models.py in PyTorch, for benchmarks/transformer.py."""

from collections.abc import Callable

import models
import numpy as np
import torch
from torch import nn

_WIDTH, _HEADS, _DEPTH, _CLASSES = 256, 8, 4, 10
# Keras's, so that both compute the same.
_EPSILON = 1e-3


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH, eps=_EPSILON) for _ in range(2))
        self.projected, self.joined = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.wide, self.narrow = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = self.projected(self.norms[0](x)).view(batch, length, 3, _HEADS, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.joined(y.transpose(1, 2).reshape(batch, length, _WIDTH))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norms[1](x))))


class _Transformer(nn.Module):
    def __init__(self, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(length, _WIDTH))
        self.blocks = nn.Sequential(*(_Block() for _ in range(_DEPTH)))
        self.norm, self.head = nn.LayerNorm(_WIDTH, eps=_EPSILON), nn.Linear(_WIDTH, _CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.tokens(tokens) + self.positions)
        return self.head(self.norm(x).mean(1))


def step(benchmark: models.Benchmark, compiled: bool, threads: int) -> Callable[[], None]:
    """A training step with fused Adam, cross-entropy and accuracy, on batch after batch.

    Args:
        benchmark: says sizes and data.
        compiled: whether the forward and backward pass go through `torch.compile`.
        threads: how many PyTorch may use.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = _Transformer(benchmark.input_shape[0], benchmark.vocabulary)
    parameters = sum(p.numel() for p in model.parameters())
    expected = benchmark.model().count_params()
    if parameters != expected:
        raise ValueError(f"PyTorch's model has {parameters} parameters, Keras's {expected}")
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-7, fused=True)
    samples = [torch.from_numpy(a.astype(np.int64)) for a in benchmark.samples()]
    batches = list(zip(*(a.split(benchmark.batch_size) for a in samples), strict=True))
    count = 0

    def run() -> None:
        nonlocal count
        x, y = batches[count % len(batches)]
        count += 1
        optimizer.zero_grad(set_to_none=True)
        logits = forward(x)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        float(loss.detach()), float((logits.argmax(1) == y).float().mean())

    return run
