"""`demo-report.html`: one page with the pictures and the numbers, for people who would rather look than read."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fieldfare.demo import plots
from fieldfare.demo.outcome import Outcome
from fieldfare.demo.stations import TEST_SEED
from fieldfare.digits import camera, task

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2327; background: #f6f7f8; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; } h2 { font-size: 1.1rem; margin: 0 0 .5rem; }
p.lead { margin: .3rem 0 1.4rem; color: #56636b; }
.tiles, .cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.cards { grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); margin-top: 1rem; }
.tile, .card { background: #fff; border: 1px solid #dfe4e7; border-radius: 8px; padding: 1rem 1.15rem; }
.tile b { display: block; font-size: 1.8rem; line-height: 1.2; } .tile span { color: #56636b; font-size: .9rem; }
.wide { grid-column: 1 / -1; } svg { width: 100%; height: auto; }
.fall b { color: #b5541c; } .rise b { color: #2c7a4b; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: #56636b; font-weight: 600; }
td, th { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #edf0f2; } td.n, th.n { text-align: right; }
p.note { color: #56636b; font-size: .88rem; margin: .6rem 0 0; }
@media (max-width: 520px) { .cards { grid-template-columns: 1fr; } }
"""


def write(path: Path, outcome: Outcome) -> None:
    """Write the report; it is whole or not there."""
    part = path.with_name(path.name + ".part")
    part.write_text(page(outcome), encoding="utf-8")
    part.replace(path)


def page(outcome: Outcome) -> str:
    """The report as HTML."""
    before, after = outcome.drifted["1"], outcome.drifted["2"]
    tiles = [
        ("", f"{outcome.clean['1'].accuracy:.1%}", "version 1 on clean images"),
        ("fall", f"{before.accuracy:.1%}", "version 1 after the cameras drifted"),
        ("rise", f"{after.accuracy:.1%}", "version 2 on the same drifted images"),
        ("", f"{outcome.bundle_1['size'] / 1024:.0f} KiB", "bundle that the devices pulled, training included"),
    ]
    cards = [
        ("Recovery", plots.recovery(outcome), _recovery_note()),
        ("What the devices counted", plots.shift(outcome), _shift_note(outcome)),
        ("What a camera saw (images of the test set)", plots.images(*_samples(outcome)), ""),
        ("The federated run", plots.rounds(outcome), _run_note(outcome)),
        ("Variants of version 1", plots.variants(outcome), "Measured in the devices' own runtime, one thread."),
        ("Rollouts", _rollouts(outcome), "Each receipt is signed by the device that sent it."),
        ("Version 1 by device", _by_device(outcome), "On held-out images like those that each device sees."),
    ]
    lead = (
        f"{outcome.devices} devices, {html.escape(outcome.broker)} broker, {len(outcome.drifting)} cameras drifted, "
        f"{sum(outcome.seconds.values()):.0f} seconds. Labels and images never left the devices."
    )
    body = "\n".join(
        [
            "<h1>Fieldfare: the loop, run once</h1>",
            f'<p class="lead">{lead}</p>',
            '<section class="tiles">',
            *(f'<div class="tile {kind}"><b>{value}</b><span>{text}</span></div>' for kind, value, text in tiles),
            '</section><section class="cards">',
            *(_card(title, content, note) for title, content, note in cards),
            "</section>",
        ]
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Fieldfare demo report</title><style>{STYLE}</style>'
        f"</head><body><main>{body}</main></body></html>\n"
    )


def _card(title: str, content: str, note: str) -> str:
    wide = " wide" if title.startswith("What a camera") else ""
    foot = f'<p class="note">{note}</p>' if note else ""
    return f'<div class="card{wide}"><h2>{html.escape(title)}</h2>{content}{foot}</div>'


def _recovery_note() -> str:
    return (
        "Both versions on the same held-out images. Estimated: mean confidence after temperature scaling, without "
        "labels; it follows covariate shift and is blind to a changed concept."
    )


def _shift_note(outcome: Outcome) -> str:
    alert = outcome.alert
    return (
        f"Alert: {html.escape(alert['feature'])}, PSI {alert['statistic']:.2f}, p = {alert['p_value']:.1e}, cohort "
        f"{html.escape(', '.join(alert['cohort']))}. The cameras are still drifted under version 2: its reference "
        "comes from the cohort's own windows, so the features are re-baselined, not recovered. Results of fewer than "
        f"{outcome.smallest_cohort} devices are never reported (set for this demonstration; the default is 10)."
    )


def _run_note(outcome: Outcome) -> str:
    config = outcome.run["config"]
    return (
        f"Flower's FedAvg, {config['rounds']} rounds of {config['epochs']} epochs at learning rate "
        f"{config['learning_rate']:g}; the devices trained with LiteRT alone."
    )


def _samples(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    data = task.load_data(outcome.devices, outcome.seed)
    test = data["part"] == "test"
    x, y = data["x"][test], data["y"][test]
    first = [int((y == digit).argmax()) for digit in range(10)]
    return x[first], camera.drift(x[first], TEST_SEED)


def _rollouts(outcome: Outcome) -> str:
    rows = []
    for rollout in outcome.rollouts:
        for wave in sorted({device["wave"] for device in rollout["devices"]}):
            names = ", ".join(d["device"] for d in rollout["devices"] if d["wave"] == wave)
            states = " → ".join(rollout["states"])
            rows.append((f"version {rollout['version']}", rollout["variant"], f"{wave + 1}", names, states))
    return _table(("bundle", "variant", "wave", "devices", "states seen"), rows)


def _by_device(outcome: Outcome) -> str:
    test = outcome.version_1["metrics"]["test"]
    rows = [(name, f"{accuracy:.3f}") for name, accuracy in sorted(test["devices"].items())]
    rows.append((f"all {test['samples']} images", f"{test['accuracy']:.3f}"))
    return _table(("device", "accuracy"), rows, numbers=(1,))


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column in numbers else ''}>{html.escape(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><tr>{line('th', header)}</tr>{body}</table>"
