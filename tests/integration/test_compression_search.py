"""A real search on the digits task: what comes out holds, and a kill at any instant changes nothing of it."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import optuna
import pytest

from compression import candidate, recipe
from compression.errors import SearchError
from compression.measure import Report
from compression.search import budget, outcome, study
from compression.search.outcome import Outcome
from compression.source import Source
from compression.stage import Workpiece
from tests.fakes import digits_search

pytestmark = pytest.mark.slow
TRIALS = 9
DEADLINE_S = 280


class Watched:
    """A judge that says in which order it was asked."""

    def __init__(self, origin: Source) -> None:
        self.judge = digits_search.judge(origin)
        self.asked: list[str] = []

    def validation(self, content: bytes) -> Report:
        self.asked.append("validation")
        return self.judge.validation(content)

    def test(self, report: Report, content: bytes) -> Report:
        self.asked.append("test")
        return self.judge.test(report, content)


def search(origin: Source, folder: Path, judge: Watched, heard: list[str], trials: int = TRIALS) -> Outcome:
    return study.run(
        origin,
        judge,  # type: ignore[arg-type]  # the two methods that a search uses
        digits_search.BUDGET,
        folder=folder,
        seconds=3600,
        trials=trials,
        seed=digits_search.SEED,
        on_progress=lambda _fraction, phrase, _best: heard.append(phrase),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def origin(place: Path) -> Source:
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    return digits_search.source(place / "weights.safetensors")


@pytest.fixture(scope="module")
def judge(origin: Source) -> Watched:
    return Watched(origin)


@pytest.fixture(scope="module")
def found(origin: Source, judge: Watched, place: Path) -> Outcome:
    return search(origin, place / "undisturbed", judge, [])


@pytest.mark.timeout(DEADLINE_S)
def test_the_chosen_artifact_meets_the_whole_budget_and_nothing_smaller_does(found: Outcome) -> None:
    assert found.chosen is not None, found.shortfall
    assert not budget.excesses(digits_search.BUDGET, msgspec.structs.asdict(found.chosen.report))
    assert len([tried for tried in found.trials if tried.why == "technique" and tried.report]) >= 5
    smaller = [t for t in found.trials if t.report and t.report.zstd_bytes < found.chosen.report.zstd_bytes]
    assert all(budget.excesses(digits_search.BUDGET, tried.figures) for tried in smaller)


def test_the_front_is_undominated_smallest_first_and_alone_was_measured_on_the_test_part(
    found: Outcome, judge: Watched
) -> None:
    sizes = [each.report.zstd_bytes for each in found.front]
    assert sizes == sorted(sizes)
    assert all(each.report.accuracy is not None for each in found.front)
    assert all(tried.report is None or tried.report.accuracy is None for tried in found.trials)
    first_test = judge.asked.index("test")
    assert "validation" not in judge.asked[first_test:]
    members = {each.content for each in [*found.front, found.chosen] if each}
    assert judge.asked.count("test") == len(members) == len(found.kept)
    assert found.chosen in found.kept


def test_the_recipe_of_a_member_of_the_front_makes_the_same_bytes_again(found: Outcome, origin: Source) -> None:
    from cloud.learning import weights

    model = weights.build(origin.task, seed=0)
    weights.put(model, origin.weights)
    member = found.front[0]
    bench = candidate.bench(origin, seed=member.recipe.seed, on_stage=lambda _phrase: None)
    made = recipe.make(member.recipe, Workpiece(model), bench).artifact
    assert made is not None
    assert hashlib.sha256(made).hexdigest() == hashlib.sha256(member.content).hexdigest()


def test_every_layer_with_a_kernel_is_in_the_sensitivity(found: Outcome) -> None:
    assert {loss.layer for loss in found.sensitivity} == {"edges", "strokes", "shape", "logits"}
    milder, harder = (
        sum(loss.divergence for loss in found.sensitivity if loss.words == words) for words in ("8 bits", "90% zeros")
    )
    assert milder < harder


def test_a_report_can_tell_the_search(found: Outcome) -> None:
    told = outcome.for_report(found, digits_search.BUDGET)
    assert msgspec.json.decode(msgspec.json.encode(told), type=type(told)) == told
    assert set(told.front) <= {trial["name"] for trial in told.trials}


def test_a_search_that_has_ended_repeats_nothing(found: Outcome, origin: Source, place: Path, judge: Watched) -> None:
    heard: list[str] = []
    again = search(origin, place / "undisturbed", judge, heard)
    assert heard == ["measuring the front on the test part"]
    assert msgspec.json.encode(again.trials) == msgspec.json.encode(found.trials)
    assert [each.content for each in again.front] == [each.content for each in found.front]


def test_a_folder_of_another_search_is_refused(found: Outcome, origin: Source, place: Path, judge: Watched) -> None:
    with pytest.raises(SearchError, match="undisturbed holds a search of another model, data, budget or seed"):
        study.run(
            origin,
            judge,  # type: ignore[arg-type]
            budget.parse("size<=1KiB"),
            folder=place / "undisturbed",
            seconds=60,
            trials=1,
            seed=digits_search.SEED,
        )


@pytest.mark.parametrize(("seconds", "trials"), [(0, 5), (float("nan"), 5), (60, 0)])
def test_a_search_without_time_or_trials_is_refused(
    origin: Source, judge: Watched, tmp_path: Path, seconds: float, trials: int
) -> None:
    with pytest.raises(SearchError, match="a search needs time and trials"):
        study.run(
            origin,
            judge,  # type: ignore[arg-type]
            digits_search.BUDGET,
            folder=tmp_path,
            seconds=seconds,
            trials=trials,
        )


def killed_at(phrase: str, command: list[str]) -> bool:
    """Run until a phrase is said, then kill; whether it was said."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if phrase in line:
                os.kill(process.pid, signal.SIGKILL)
                return True
    assert process.returncode == 0
    return False


def used(folder: Path) -> float:
    """Seconds of a search, as it goes on with them."""
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    return float(study.user_attrs["used"])


@pytest.mark.timeout(2 * DEADLINE_S)
def test_a_search_that_is_killed_three_times_finds_what_an_undisturbed_one_finds(found: Outcome, place: Path) -> None:
    folder, out = place / "killed", place / "out.json"
    command = [
        sys.executable, "-m", "tests.fakes.digits_search", str(folder), str(TRIALS), str(place / "weights.safetensors"),
        str(out),
    ]  # fmt: skip
    spent = [0.0]
    for phrase in ("looking at what layer logits", "cutting filters", "trial 9: measuring"):
        assert killed_at(phrase, command)
        spent.append(used(folder))
    assert spent == sorted(set(spent))  # the time of what was killed counts
    assert not killed_at("nothing says this", command)
    told = msgspec.json.decode(out.read_bytes())
    assert told["trials"] == [digits_search.essence(tried) for tried in found.trials]
    assert told["front"] == [each.recipe.name for each in found.front]
    left = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix == ".part"]
    for path in (path for path in left if path.suffix == ".tflite"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
