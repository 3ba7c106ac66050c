"""An architecture as the engine sees it: weights by name, logits as a function of weights and samples."""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from cloud.learning import torch_model
from cloud.learning.task import Task
from contract.tensors import Arrays
from simulations.cohort.layers import Dense, Images, of_sequential
from simulations.errors import SimulationError

Weights = list[Tensor]


@dataclass(frozen=True)
class Learner:
    """What is trained.

    Attributes:
        names: of the weights, in order: what gradients train, then what a model keeps besides, as BatchNorm does.
        trained: how many of them gradients train; `logits` may write to the others in training.
        start: the weights of a fresh model, float32.
        logits: weights, samples (n, *input) and whether this is training to logits (n, classes).
        classes: how many.
        stack: the layers, where the model is nothing but dense layers and ReLU on flattened samples or `images`; else
            empty.
        images: what comes before them, if anything does.
        source: the task by which another process can make this learner, and the seed; None where there is no task.
    """

    names: tuple[str, ...]
    trained: int
    start: Arrays
    logits: Callable[[Weights, Tensor, bool], Tensor]
    classes: int
    stack: tuple[Dense, ...] = ()
    images: Images | None = None
    source: tuple[str, int] | None = None


def of_task(task: Task, *, seed: int) -> Learner:
    """The learner of a torch task, or of a Keras task whose layers have a torch form.

    Raises:
        TaskError: `build_model` gives no model of the task.
        SimulationError: a Keras layer without a torch form here.
    """
    if task.framework == "torch":
        made = of_module(torch_model.build(task, seed=seed), len(task.labels))
        return replace(made, source=(task.ref, seed))
    from cloud.learning import weights
    from cloud.learning.backend import use_torch
    from simulations.cohort import keras_layers

    use_torch()
    model = weights.build(task, seed=seed)
    made = keras_layers.learner(model, weights.get(model), len(weights.trainable(model)), len(task.labels))
    return replace(made, source=(task.ref, seed))


def of_module(module: torch.nn.Module, classes: int) -> Learner:
    """The learner of a module. Its floating-point buffers are averaged over clients like weights.

    Raises:
        SimulationError: a parameter that is frozen.
    """
    parameters = dict(module.named_parameters())
    frozen = [name for name, value in parameters.items() if not value.requires_grad]
    if frozen:
        raise SimulationError(f"{frozen[0]} is frozen; simulations train every parameter")
    arrays = torch_model.get(module)
    names = (*parameters, *(name for name in arrays if name not in parameters))

    held = threading.local()  # a call puts the weights into the module for as long as it takes

    def logits(given: Weights, x: Tensor, training: bool) -> Tensor:
        if not hasattr(held, "module"):
            held.module = copy.deepcopy(module)
        held.module.train(training)
        found: Tensor = functional_call(held.module, dict(zip(names, given, strict=True)), (x,))
        return found

    start = {name: arrays[name] for name in names}
    images, stack = of_sequential(module, names)
    return Learner(names, len(parameters), start, logits, classes, stack, images)


def loss_and_hits(logits: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Any]:
    """Mean cross-entropy over the samples that count, and how many of them were right."""
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    return (losses * mask).sum() / mask.sum().clamp(min=1), ((logits.argmax(-1) == y) * mask).sum()
