"""Models of models.py in PyTorch, for benchmarks/pytorch.py: the same layers and sizes."""

import itertools
from collections.abc import Callable

import _torch_recurrent
import _torch_transformer
import models
import numpy as np
import torch
from torch import nn

Step = Callable[[], object]


class _ChannelsFirst(nn.Module):
    """Images and signals as PyTorch has them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(-1, 1)


class _Recurrent(nn.Module):
    """A stack whose layers hand on their first output; the last time step of it if asked for."""

    def __init__(self, layers: list[nn.Module], is_last: bool, head: nn.Module):
        super().__init__()
        self.layers, self.is_last, self.head = nn.ModuleList(layers), is_last, head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)[0] if isinstance(layer, nn.RNNBase) else layer(x)
        return self.head(x[:, -1] if self.is_last else x)


class _Recommender(nn.Module):
    def __init__(self, rows: int, classes: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 32) for _ in range(2))
        self.rated = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        vectors = [table(ids[:, place]) for place, table in enumerate(self.tables)]
        return self.rated(torch.cat(vectors, 1))


def _mlp(one: models.Benchmark) -> nn.Module:
    wide = nn.Linear(one.input_shape[0], 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU()
    return nn.Sequential(*wide, nn.Linear(1024, one.classes))


def _cnn(one: models.Benchmark) -> nn.Module:
    layers: list[nn.Module] = [_ChannelsFirst()]
    for before, after in itertools.pairwise((3, 32, 64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(4 * 4 * 128, 128), nn.ReLU(), nn.Linear(128, one.classes)]
    return nn.Sequential(*layers)


def _speech_cnn(one: models.Benchmark) -> nn.Module:
    convolutions = nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()
    high, wide, _ = one.input_shape
    flat = (high - 4) // 2 * ((wide - 4) // 2) * 64
    dense = nn.Linear(flat, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, one.classes)
    pooled = nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten()
    return nn.Sequential(_ChannelsFirst(), *convolutions, *pooled, *dense)


def _lstm(one: models.Benchmark) -> nn.Module:
    layers = [nn.LSTM(one.input_shape[-1], 64, batch_first=True), nn.LSTM(64, 64, batch_first=True)]
    return _Recurrent(layers, True, nn.Linear(64, one.classes))


def _gru_tagger(one: models.Benchmark) -> nn.Module:
    layers = [
        nn.Embedding(one.vocabulary, 64),
        nn.GRU(64, 64, batch_first=True, bidirectional=True),
    ]
    return _Recurrent(layers, False, nn.Linear(128, one.classes))


BUILDERS: dict[str, Callable[[models.Benchmark], nn.Module]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "speech_cnn": _speech_cnn,
    "lstm": _lstm,
    "conv_lstm": lambda one: _torch_recurrent.ConvLSTM(one.input_shape[-1], one.classes),
    "gru_tagger": _gru_tagger,
    "transformer": lambda one: _torch_transformer._Transformer(one.input_shape[0], one.vocabulary),
    "embedding": lambda one: _Recommender(one.vocabulary, one.classes),
}
# Layers of images gain by channels that are last in memory.
_IMAGES = ("cnn", "speech_cnn")


def step(benchmark: models.Benchmark, dtype: str, compiled: bool, threads: int) -> Step:
    """A training step with fused Adam, cross-entropy and accuracy, on batch after batch.

    Args:
        benchmark: says sizes and data.
        dtype: `"float32"`, or `"bfloat16"` by autocast.
        compiled: whether the forward and backward pass go through `torch.compile`.
        threads: how many PyTorch may use.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = BUILDERS[benchmark.name](benchmark)
    if benchmark.name in _IMAGES:
        model = model.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.Adam(model.parameters(), eps=1e-7, fused=True)
    inputs, labels = benchmark.samples()
    inputs = inputs.astype(np.int64) if benchmark.vocabulary else inputs
    samples = [torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.int64))]
    batches = itertools.cycle(zip(*(a.split(benchmark.batch_size) for a in samples), strict=True))

    def run() -> None:
        x, y = next(batches)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            scores = forward(x).flatten(0, -2)
        loss = nn.functional.cross_entropy(scores.float(), y.flatten())
        loss.backward()
        optimizer.step()
        float(loss.detach()), float((scores.argmax(1) == y.flatten()).float().mean())

    return run
