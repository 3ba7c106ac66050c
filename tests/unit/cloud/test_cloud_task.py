"""Loading a task: from a folder or a package, and what is said when something in it is wrong."""

from pathlib import Path

import pytest

from cloud.errors import TaskError
from cloud.learning import snapshot
from cloud.learning.task import ScaleStep, load_task

TOML = """
[task]
name = "toy"
labels = ["no", "yes"]
input_shape = [2]
[options]
count = 8
[transform]
features = [{ op = "column", name = "first", index = 0 }]
"""
MODULE = """
import numpy as np
def build_model(keras):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
def load_data(count):
    part = np.array(["train", "validation", "test", "train"] * (count // 4))
    return {"x": np.arange(2.0 * count).reshape(count, 2), "y": np.arange(count) % 2,
            "device": np.full(count, "a"), "part": part}
"""


def write(folder: Path, toml: str = TOML, module: str = MODULE) -> str:
    (folder / "fieldfare.toml").write_text(toml)
    (folder / "task.py").write_text(module)
    return str(folder)


def test_a_folder_is_a_task(tmp_path: Path) -> None:
    task = load_task(write(tmp_path))
    assert (task.name, task.labels, task.input_shape) == ("toy", ("no", "yes"), (2,))
    assert len(task.load_data()["x"]) == 8
    assert len(task.load_data(count=4)["x"]) == 4


UNLABELLED = MODULE.replace('"train"] *', '"unlabelled"] *').replace("np.arange(count) % 2", "Y")


def test_samples_without_a_class_are_a_part_of_their_own(tmp_path: Path) -> None:
    y = 'np.where(part == "unlabelled", -1, np.arange(count) % 2)'
    data = load_task(write(tmp_path, module=UNLABELLED.replace("Y", y))).load_data()
    assert data["y"].tolist() == [0, 1, 0, -1, 0, 1, 0, -1]
    taken = snapshot.take("toy", {}, data)
    assert {part: file.samples for part, file in taken.manifest.files.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
        "unlabelled": 2,
    }
    back = snapshot.load(taken.manifest, taken.files.__getitem__)
    assert back["x"][back["part"] == "unlabelled"].tolist() == data["x"][data["part"] == "unlabelled"].tolist()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ("np.arange(count) % 2", "y of the part 'unlabelled' must be -1"),
        ("np.full(count, -1)", "classes must be integers from 0 to 1"),
    ],
)
def test_a_class_stands_where_samples_have_one_and_nowhere_else(tmp_path: Path, y: str, message: str) -> None:
    task = load_task(write(tmp_path, module=UNLABELLED.replace("Y", y)))
    with pytest.raises(TaskError, match=message):
        task.load_data()


def test_a_task_may_build_students_too(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, module=MODULE + "\ndef build_student(keras):\n    return keras\n"))
    assert task.builder("build_student")("this") == "this"
    for name in ("build_studnt", "load_data", "np"):
        with pytest.raises(TaskError, match=rf"no function '{name}'; there is build_model, build_student"):
            task.builder(name)


def test_a_package_is_a_task() -> None:
    task = load_task("fieldfare.digits")
    assert task.name == "digits"
    assert isinstance(task.transform.steps[1], ScaleStep)
    assert task.load_data(devices=3)["x"].shape[1:] == task.input_shape


@pytest.mark.parametrize(
    ("toml", "module", "message"),
    [
        ("[task]", MODULE, "missing required field `name`"),
        (TOML + "\n[surprise]", MODULE, "unknown field `surprise`"),
        ("not toml", MODULE, "fieldfare.toml"),
        (TOML.replace('["no", "yes"]', '["no"]'), MODULE, "two or more different names"),
        (TOML + "\n[training]\nepochs = 0", MODULE, "epochs and batch must be 1 or more"),
        (TOML + "\n[training]\nlearning_rate = nan", MODULE, "learning_rate above 0"),
        (TOML, "x = 1", "needs a function build_model"),
        (TOML, "import nowhere_to_be_found", "nowhere_to_be_found"),
        (TOML, "def build_model(:", "cannot be imported"),
    ],
)
def test_a_broken_task_is_refused_with_the_place(tmp_path: Path, toml: str, module: str, message: str) -> None:
    ref = write(tmp_path, toml, module)
    with pytest.raises(TaskError, match=message):
        load_task(ref)


@pytest.mark.parametrize("ref", ["nothing-here", "no.such.package", "json", "json.decoder"])
def test_an_unknown_task_is_refused(ref: str) -> None:
    with pytest.raises(TaskError, match=ref.split(".", maxsplit=1)[0]):
        load_task(ref)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('"x": np.arange(2.0 * count).reshape(count, 2)', "gave no"),
        ('"y": np.arange(count) % 2', "integers from 0 to 1"),
        ('"device": np.full(count, "a")', "different lengths"),
        ('"part": part', "parts"),
    ],
)
def test_wrong_data_are_refused_by_column(tmp_path: Path, change: str, message: str) -> None:
    wrong = {
        "gave no": '"z": 1',
        "integers from 0 to 1": '"y": np.arange(count)',
        "different lengths": '"device": np.full(3, "a")',
        "parts": '"part": np.full(count, "train")',
    }[message]
    task = load_task(write(tmp_path, module=MODULE.replace(change, wrong)))
    with pytest.raises(TaskError, match=message):
        task.load_data()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("x=np.zeros((0, 2)), y=np.zeros(0, int), device=np.zeros(0, str), part=np.zeros(0, str)", "are empty"),
        ("x=np.zeros((3, 2)), y=[0, 1, 0], device=np.full(3, 'a'), part=np.full(3, 'train')", "numpy arrays"),
        ("x=np.zeros((3, 2)), y=np.zeros((3, 1), int), device=np.full(3, 'a'), part=np.full(3, 'train')", "of shape"),
        ("x=np.zeros((3, 2)), y=np.array([0, -1, 0]), device=np.full(3, 'a'), part=np.full(3, 'train')", "from 0 to"),
    ],
)
def test_columns_that_are_none_are_refused(tmp_path: Path, columns: str, message: str) -> None:
    module = MODULE.partition("def load_data")[0] + f"def load_data(count):\n    return dict({columns})\n"
    task = load_task(write(tmp_path, module=module))
    with pytest.raises(TaskError, match=message):
        task.load_data()


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, TOML.replace("input_shape = [2]", "input_shape = [3]")))
    with pytest.raises(TaskError, match=r"\(3,\)"):
        task.load_data()
