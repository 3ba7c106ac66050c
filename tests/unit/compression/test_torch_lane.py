"""The torch lane: a torch task is trained, converted in the other environment, measured like any other, and bundled."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest

from cloud.errors import TaskError
from cloud.learning import metrics, torch_model
from cloud.learning.task import load_task
from cloud.training import job as train_job
from compression import job as compress_job
from compression import source
from compression.errors import ConversionError, UnsupportedLayerError
from compression.lanes import onnx, torch_lane
from compression.measure import Judge
from compression.stage import Samples, Workbench
from contract import bundle, tensors
from edge_agent.runtime import Runtime
from tests.fakes.registry_client import RegistryClient, context

pytestmark = pytest.mark.slow
TASK = str(Path(__file__).parents[3] / "examples" / "torch_digits")
MIXED = {"name": "mixed", "stages": [{"stage": "float"}, {"stage": "mixed"}]}


@dataclasses.dataclass
class Made:
    client: RegistryClient
    folder: Path

    def run(self, job: Any, id: str, spec: dict[str, Any]) -> dict[str, Any]:  # noqa: A002
        folder = self.folder / id
        folder.mkdir()
        return job.run(context(self.client, folder, id, spec, []))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("torch")
    found = Made(RegistryClient(folder), folder)
    found.run(train_job, "train", {"task": TASK, "model": "digits", "epochs": 12})
    yield found
    found.client.close()


def test_a_version_holds_the_state_dict_in_its_order_and_says_how_good_it_is(made: Made) -> None:
    version = made.client.get_version("digits", 1)
    assert version.metrics["test"]["accuracy"] > 0.9
    arrays = tensors.load(made.client.get_blob(version.weights_sha256))
    assert list(arrays)[:3] == ["edges.0.weight", "edges.0.bias", "edges.1.weight"]
    assert "edges.1.running_var" in arrays
    assert "edges.1.num_batches_tracked" not in arrays


def test_the_same_seed_gives_the_same_weights(made: Made) -> None:
    first = made.client.get_version("digits", 1)
    made.run(train_job, "again", {"task": TASK, "model": "again", "epochs": 12})
    assert made.client.get_version("again", 1).weights_sha256 == first.weights_sha256


@pytest.mark.torch_lane
def test_a_torch_version_becomes_measured_variants_and_a_bundle_for_inference(made: Made) -> None:
    spec = {"model": "digits", "version": 1, "recipes": ["int8", MIXED], "gates": {"max_drop": 0.03}}
    result = made.run(compress_job, "compress", spec)
    variants = {each.name: each for each in made.client.get_version("digits", 1).variants}
    assert set(variants) == {"float", "int8", "mixed"}
    reports = {name: each.report for name, each in variants.items()}
    assert all(each["accuracy"] > 0.9 for each in reports.values())
    assert reports["int8"]["bytes"] < 0.45 * reports["float"]["bytes"]
    assert reports["int8"]["records"][0]["notes"] == {"by": "litert-torch, PT2E"}
    assert result["training"] == "torch-digits is a torch task; training on devices needs a Keras model"
    content = bundle.unpack(made.client.get_blob(result["bundle"]["sha256"]))
    assert content.manifest.training is None
    logits = Runtime(content.files["inference"]).logits(content.transform.apply(content.golden["x"]))
    assert np.abs(logits - content.golden["logits"]).max() <= content.manifest.golden_tolerance


@pytest.mark.torch_lane
def test_module_float_int8_and_onnx_are_as_accurate_on_the_same_samples(made: Made) -> None:
    origin = source.load(made.client, "digits", 1)  # type: ignore[arg-type]  # the registry, without HTTP
    bench = Workbench(
        origin.task,
        origin.weights,
        Samples(origin.train.x, origin.train.y),
        Samples(origin.validation.x, origin.validation.y),
    )
    model = torch_lane.TorchModel(origin.task, origin.weights)
    floats = torch_lane.convert(model, "float", bench)
    judge = Judge(origin, floats)
    module = made.client.get_version("digits", 1).metrics["validation"]["accuracy"]
    assert judge.validation(floats).validation_accuracy == pytest.approx(module, abs=1 / len(origin.validation.y))
    assert judge.validation(torch_lane.convert(model, "int8", bench)).drop <= 0.02
    onnx.export(origin, made.folder / "m.onnx")
    session = onnxruntime.InferenceSession(made.folder / "m.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(["logits"], {"x": origin.validation.x})[0]
    np.testing.assert_allclose(answers, judge.logits(floats, origin.validation), rtol=1e-3, atol=1e-3)
    assert metrics.accuracy(answers, origin.validation.y) == pytest.approx(module, abs=1 / len(origin.validation.y))


@pytest.mark.torch_lane
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_the_same_weights_and_samples_give_the_same_bytes(made: Made, kind: Literal["float", "int8"]) -> None:
    origin = source.load(made.client, "digits", 1)  # type: ignore[arg-type]  # the registry, without HTTP
    samples = Samples(origin.validation.x, origin.validation.y)
    bench = Workbench(origin.task, origin.weights, samples, samples)
    model = torch_lane.TorchModel(origin.task, origin.weights)
    assert torch_lane.convert(model, kind, bench) == torch_lane.convert(model, kind, bench)


@pytest.mark.torch_lane
def test_the_float_artifact_answers_like_the_module(made: Made) -> None:
    task = load_task(TASK)
    arrays = tensors.load(made.client.get_blob(made.client.get_version("digits", 1).weights_sha256))
    module = torch_model.build(task, seed=0)
    torch_model.put(module, arrays)
    x = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    bench = Workbench(task, arrays, Samples(x, np.zeros(20, int)), Samples(x, np.zeros(20, int)))
    content = torch_lane.convert(torch_lane.TorchModel(task, arrays), "float", bench)
    np.testing.assert_allclose(Runtime(content).logits(x), torch_model.logits(module, x), rtol=1e-3, atol=1e-3)


@pytest.mark.torch_lane
@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"stage": "prune"}, {"stage": "int8"}], "recipe x: training-aware compression works on Keras models"),
        ([{"stage": "distill"}, {"stage": "int8"}], "torch-digits is a torch task"),
        ([{"stage": "filter-prune"}, {"stage": "int8"}], "torch-digits is a torch task"),
        (
            [{"stage": "dynamic"}],
            "recipe x: dynamic works on Keras models, and torch-digits is a torch task; use float",
        ),
    ],
)
def test_what_the_lane_cannot_do_is_refused_by_name(made: Made, stages: list[Any], message: str) -> None:
    spec = {"model": "digits", "version": 1, "recipes": [{"name": "x", "stages": stages}]}
    with pytest.raises(UnsupportedLayerError, match=message):
        made.run(compress_job, f"refused-{stages[0]['stage']}", spec)


def test_a_search_is_refused_before_anything_is_made(made: Made) -> None:
    spec = {"model": "digits", "version": 1, "recipes": [], "search": {"budget": "drop<=1pt"}}
    with pytest.raises(UnsupportedLayerError, match="search works on Keras models, and torch-digits is a torch task"):
        made.run(compress_job, "search", spec)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/python", "FIELDFARE_TORCH_PYTHON: /nowhere/python: No such file"),
        ("", "litert_torch is not installed: pip"),
    ],
)
def test_a_missing_environment_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, python: str, message: str
) -> None:
    monkeypatch.setenv(torch_lane.PYTHON, python)
    task = load_task(TASK)
    arrays = torch_model.get(torch_model.build(task, seed=0))
    x = np.zeros((1, 8, 8, 1), np.float32)
    bench = Workbench(task, arrays, Samples(x, np.zeros(1, int)), Samples(x, np.zeros(1, int)))
    with pytest.raises(ConversionError, match=message):
        torch_lane.convert(torch_lane.TorchModel(task, arrays), "float", bench)


def test_a_module_of_other_outputs_or_no_module_is_refused() -> None:
    task = load_task(TASK)
    for build, message in (
        (lambda torch: torch.nn.Flatten(), r"the module gives \(1, 64\), expected \(1, 10\) logits"),
        (lambda torch: torch.nn.Linear(3, 10), "does not take samples of shape"),
        (lambda _torch: "no module", "must give a torch.nn.Module, it gave str"),
    ):
        with pytest.raises(TaskError, match=message):
            torch_model.build(dataclasses.replace(task, build_model=build), seed=0)
