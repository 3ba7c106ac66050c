"""Fit a torch module of a task: the loop of `cloud.training.fit`, without Keras."""

from collections.abc import Callable
from functools import partial

import numpy as np

from cloud.errors import TrainingError
from cloud.learning import torch_model
from cloud.learning.task import Data, Task
from cloud.training.fit import Fitted, OnEpoch, measured


def fit(task: Task, data: Data, x: np.ndarray, *, epochs: int, seed: int, on_epoch: OnEpoch) -> Fitted:
    """Train on the training part with Adam, measure on the others. Arguments and errors: `cloud.training.fit.fit`."""
    import torch

    module = torch_model.build(task, seed=seed)
    rows = np.flatnonzero(data["part"] == "train")
    inputs, classes = torch.from_numpy(x[rows]), torch.from_numpy(data["y"][rows])
    optimizer = torch.optim.Adam(module.parameters(), lr=task.training.learning_rate)
    order = torch.Generator().manual_seed(seed)
    loss_of = torch.nn.CrossEntropyLoss()
    mean = float("nan")
    for epoch in range(epochs):
        module.train()
        total = 0.0
        for batch in torch.randperm(len(rows), generator=order).split(task.training.batch):
            optimizer.zero_grad()
            loss = loss_of(module(inputs[batch]), classes[batch])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        mean = total / len(rows)
        if not np.isfinite(mean):
            raise TrainingError(f"{task.name}: the loss became {mean}; lower training.learning_rate in fieldfare.toml")
        on_epoch(epoch + 1, mean)
    module.eval()
    of: Callable[[np.ndarray], np.ndarray] = partial(torch_model.logits, module)
    found = measured(of, data, x)
    found["training"] = {"epochs": epochs, "loss": mean, "samples": len(rows)}
    return Fitted(torch_model.get(module), found)
