"""A workbench for tests of compression: the digits task, its model trained for a few seconds, no registry."""

from typing import Any

from cloud import features
from cloud.learning import metrics
from cloud.learning.task import Task, load_task
from compression import recipe, tuning
from compression.stage import Samples, Workbench, Workpiece
from contract import transform
from edge_agent.runtime import Runtime


def untrained() -> Workbench:
    """Digits with the weights of an initializer; TensorFlow is imported."""
    from cloud.learning import weights

    task, parts = _parts()
    return Workbench(task, weights.get(weights.build(task, seed=1)), parts["train"], parts["validation"], seed=1)


def trained(epochs: int = 20) -> Workbench:
    """Digits with weights of about 95 % accuracy."""
    from cloud.learning import weights

    bench = untrained()
    with tuning.quiet():
        model = tuning.tf_keras_model(Workpiece(), bench)
        tuning.fit(model, bench, epochs=epochs, learning_rate=3e-3)
    known = weights.build(bench.task, seed=1)
    known.set_weights(model.get_weights())
    return Workbench(bench.task, weights.get(known), bench.train, bench.validation, seed=1)


def _parts() -> tuple[Task, dict[str, Samples]]:
    task = load_task("fieldfare.digits")
    data = task.load_data()
    executor = transform.Transform(features.fit(task, data["x"][data["part"] == "train"]))
    parts = {}
    for part in ("train", "validation"):
        mine = data["part"] == part
        parts[part] = Samples(executor.apply(data["x"][mine]), data["y"][mine])
    return task, parts


def keras_model(bench: Workbench) -> Any:
    """The bench's model in Keras, holding its weights."""
    from cloud.learning import weights

    model = weights.build(bench.task, seed=1)
    weights.put(model, bench.weights)
    return model


def run(bench: Workbench, *stages: Any) -> Workpiece:
    """What stages make of the bench's model, in tf_keras to begin with."""
    piece = Workpiece(tuning.tf_keras_model(Workpiece(), bench))
    return recipe.make(recipe.Recipe(name="mine", stages=list(stages)), piece, bench)


def accuracy(bench: Workbench, content: bytes | None) -> float:
    """Of an artifact, on the bench's validation samples."""
    assert content is not None
    return metrics.accuracy(Runtime(content).logits(bench.validation.x), bench.validation.y)
