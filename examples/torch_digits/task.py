"""The digits task with a torch module; it takes images as the transform gives them, channels last."""

from typing import Any

from fieldfare.digits.task import load_data

__all__ = ["build_model", "load_data"]


def build_model(torch: Any) -> Any:
    """Two convolutions with BatchNorm and two dense layers: (samples, 8, 8, 1) in [0, 1] to logits (samples, 10)."""
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]  # torch comes in as an argument
        def __init__(self) -> None:
            super().__init__()
            self.edges = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
            self.strokes = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
            self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

        def forward(self, x: Any) -> Any:
            return self.head(self.strokes(self.edges(x.permute(0, 3, 1, 2))))

    return Net()
