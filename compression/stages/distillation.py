"""Stage `distill`: a student learns to give a teacher's logits (Hinton et al. 2015, arXiv:1503.02531)."""

from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from compression import tuning
from compression.channels import cost
from compression.errors import RecipeError
from compression.stage import Stage, Workbench, Workpiece
from compression.stages.shrinking import narrower

Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Distill(Stage, frozen=True, kw_only=True, tag="distill"):
    """A student learns from the teacher's softened logits, on samples without a class too.

    Attributes:
        student: `build_*` function of the task's module. Empty is `width` of the teacher.
        width: multiple of the teacher's filters, with new weights; at 1 the student is the model that arrives, after
            `filter-prune` for example.
        teacher: the version's model, or with `workpiece` the one that arrives.
        temperature: of both softmaxes; the loss counts its square, so that gradients keep their size.
        alpha: weight of the classes of training samples; at 0 none is looked at. 1 is a control arm without a teacher:
            the same steps, seed and labelled batches.
        labels: fraction of the training samples whose classes are used; the rest are samples without a class.
        epochs: passes over all samples, at `learning_rate` (Adam) that falls to 0.
    """

    student: Annotated[str, msgspec.Meta(pattern="^(build_[A-Za-z0-9_]+)?$")] = ""
    width: Fraction = 1.0
    teacher: Literal["version", "workpiece"] = "version"
    temperature: Annotated[float, msgspec.Meta(gt=0, le=100)] = 4.0
    alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    labels: Fraction = 1.0
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 20
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 3e-3

    @property
    def trains(self) -> bool:  # type: ignore[override]  # it depends on alpha
        """Without weight of classes it learns from the teacher alone, a federated version for example."""
        return self.alpha > 0

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage("teaching a student")
        with tuning.quiet():
            teacher = tuning.tf_keras_model(Workpiece() if self.teacher == "version" else piece, bench)
            student = self._student(teacher, piece, bench)
            x = bench.train.x if bench.unlabelled is None else np.concatenate([bench.train.x, bench.unlabelled])
            steps = self.epochs * -(-len(x) // tuning.BATCH)
            known = self._labelled(bench)
            tuning.imitate(
                student,
                (x, teacher.predict(x, batch_size=256, verbose=0)),
                (bench.train.x[known], bench.train.y[known]),
                temperature=self.temperature,
                alpha=self.alpha,
                steps=steps,
                learning_rate=self.learning_rate,
                seed=bench.seed,
            )
            answers = [model.predict(bench.validation.x, batch_size=256, verbose=0) for model in (teacher, student)]
        agreement = float(np.mean(answers[0].argmax(axis=1) == answers[1].argmax(axis=1)))
        before, after = cost(teacher), cost(student)
        return student, {
            "samples": len(x),
            "labelled": len(known) if self.alpha else 0,
            "steps": steps,
            "agreement": round(agreement, 4),
            **{what: [before[what], after[what]] for what in before},
        }

    def _student(self, teacher: Any, piece: Workpiece, bench: Workbench) -> Any:
        import tf_keras

        if self.student:
            tf_keras.utils.set_random_seed(bench.seed)
            made = bench.task.builder(self.student)(tf_keras)
        elif self.width < 1:
            made = narrower(teacher, self.width, seed=bench.seed)
        elif self.teacher == "workpiece":
            raise RecipeError("distill: the teacher would teach itself; name a student, or a width below 1")
        else:
            made = tuning.copy(tuning.tf_keras_model(piece, bench))
        if (made.input_shape, made.output_shape) != (teacher.input_shape, teacher.output_shape):
            raise RecipeError(
                f"distill: the student maps {made.input_shape} to {made.output_shape}, "
                f"the teacher {teacher.input_shape} to {teacher.output_shape}"
            )
        return made

    def _labelled(self, bench: Workbench) -> np.ndarray:
        """Rows of the training samples whose classes are used."""
        count = max(1, round(self.labels * len(bench.train.y)))
        return np.sort(np.random.default_rng(bench.seed).permutation(len(bench.train.y))[:count])
