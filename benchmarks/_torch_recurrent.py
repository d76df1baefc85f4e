"""The work of recurrent.py in PyTorch: the same shapes, the same gradients, fused Adam."""

from collections.abc import Callable

import torch

Step = Callable[[], object]


class ConvLSTM(torch.nn.Module):
    """`conv_lstm` of models.py; batch normalization with Keras's defaults."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.convolution = torch.nn.Conv1d(features, 64, 5, padding="same", bias=False)
        self.norm = torch.nn.BatchNorm1d(64, eps=1e-3, momentum=0.01)
        self.first = torch.nn.LSTM(64, 128, batch_first=True)
        self.second = torch.nn.LSTM(128, 128, batch_first=True)
        self.head = torch.nn.Linear(128, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.convolution(inputs.transpose(1, 2))))
        hidden, _ = self.first(hidden.transpose(1, 2))
        hidden, _ = self.second(hidden)
        return self.head(hidden[:, -1])


def layer_steps(
    kind: str, shape: tuple[int, int, int], units: int, bidirectional: bool
) -> dict[str, Step]:
    """One layer, forward and all gradients."""
    layer = getattr(torch.nn, kind)(shape[-1], units, batch_first=True, bidirectional=bidirectional)
    inputs = torch.randn(*shape, requires_grad=True)
    upstream = torch.randn(*shape[:2], units * (2 if bidirectional else 1))

    def step() -> None:
        inputs.grad = None
        layer.zero_grad(set_to_none=True)
        layer(inputs)[0].backward(upstream)

    return {"PyTorch": step}


def training_steps(shape: tuple[int, int, int], classes: int) -> dict[str, Step]:
    """The training step of `conv_lstm`, eager and compiled."""
    return {
        "PyTorch": _training_step(shape, classes, compiled=False),
        "PyTorch, compiled": _training_step(shape, classes, compiled=True),
    }


def _training_step(shape: tuple[int, int, int], classes: int, compiled: bool) -> Step:
    torch.manual_seed(0)
    model = ConvLSTM(shape[-1], classes)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    forward = torch.compile(model) if compiled else model
    inputs, labels = torch.rand(*shape), torch.randint(0, classes, shape[:1])

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(forward(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
