"""Fit a task's transform on its training part: what comes out is a plain `TransformSpec` that every executor runs."""

import numpy as np

from cloud.errors import TaskError
from cloud.learning.task import FILE, ImputeStep, ScaleStep, Task
from contract.errors import TransformError
from contract.transform import Impute, Scale, Step, Transform, TransformSpec


def fit(task: Task, x: np.ndarray) -> TransformSpec:
    """Fit the steps one after the other, each on what the steps before it give.

    Args:
        task: its plan names what to fit.
        x: raw samples of the training part alone, shape (n, *input_shape).

    Raises:
        TaskError: a step with neither numbers nor a rule to fit them, a column that never changes, or steps and
            features that do not fit the samples.
    """
    shape = list(task.input_shape)
    steps: list[Step] = []
    values = np.asarray(x, np.float32)
    try:
        for plan in task.transform.steps:
            if isinstance(plan, ImputeStep):
                step: Step = _impute(task, plan, values)
            elif isinstance(plan, ScaleStep):
                step = _scale(task, plan, values)
            else:
                step = plan
            # A step alone is a transform too; only Impute lets a value pass that is not finite.
            values = Transform(TransformSpec(input_shape=list(values.shape[1:]), steps=[step], features=[])).apply(
                values
            )
            steps.append(step)
        spec = TransformSpec(input_shape=shape, steps=steps, features=task.transform.features)
        Transform(spec).features(values[:1])
    except TransformError as error:
        raise TaskError(f"{task.folder / FILE}: transform: {error}") from error
    return spec


def _impute(task: Task, plan: ImputeStep, values: np.ndarray) -> Impute:
    if (plan.value is None) == (plan.fit is None):
        raise TaskError(f"{task.folder / FILE}: impute needs either `value` or `fit`")
    if plan.value is not None:
        return Impute(plan.value)
    seen = values[~np.isnan(values)]
    if not len(seen):
        raise TaskError(f"{task.name}: there is no value to take a {plan.fit} of")
    return Impute(float(np.mean(seen, dtype=np.float64) if plan.fit == "mean" else np.median(seen)))


def _scale(task: Task, plan: ScaleStep, values: np.ndarray) -> Scale:
    """Fitted for each entry of the last axis, as `Scale` is applied."""
    if plan.fit is None:
        if plan.offset is None or plan.divisor is None:
            raise TaskError(f"{task.folder / FILE}: scale needs either `offset` and `divisor`, or `fit`")
        return Scale(plan.offset, plan.divisor)
    if plan.offset is not None or plan.divisor is not None:
        raise TaskError(f"{task.folder / FILE}: scale has both numbers and `fit`; give one of them")
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    if plan.fit == "standard":
        offset, divisor = np.nanmean(flat, axis=0), np.nanstd(flat, axis=0)
    else:
        offset = np.nanmin(flat, axis=0)
        divisor = np.nanmax(flat, axis=0) - offset
    if not (divisor > 0).all():
        column = int(np.argmin(divisor > 0))
        raise TaskError(f"{task.name}: column {column} never changes in the training part; leave it out")
    return Scale([float(v) for v in offset], [float(v) for v in divisor])
