"""A device with tflite-runtime: `python legacy_device.py FOLDER` runs what lies there, and writes JSON.

Run it in an environment of its own, with the repository on `PYTHONPATH`. It must not import what such a device lacks.
"""

import json
import sys
from pathlib import Path

import numpy as np

from contract.bundle import unpack
from contract.messages import BundleRef
from edge_agent.errors import RuntimeModelError
from edge_agent.runtime import Runtime
from edge_agent.runtime_backend import RuntimeOptions, runtime_version
from edge_agent.serving import Model
from edge_agent.training import TrainingRuntime


def main(folder: Path) -> dict[str, object]:
    """Golden vectors of `bundle.zip`, single samples and their counts, and what is refused."""
    bundle = unpack((folder / "bundle.zip").read_bytes())
    ref = BundleRef(model="thirds", version=1, variant="int8", target="", sha256="")
    model = Model(ref, bundle, RuntimeOptions())
    raw, expected = bundle.golden["x"], bundle.golden["logits"]
    outputs = np.concatenate([model.step(sample) for sample in raw])
    counts = model.count(model.infer(raw), slice(None))
    return {
        "runtime": runtime_version(),
        "numpy": np.__version__,
        "loaded": sorted({name.partition(".")[0] for name in sys.modules} & {"ai_edge_litert", "tflite_runtime"}),
        "worst": float(np.abs(model.logits(raw) - expected).max()),
        "same": model.probabilities(outputs).tobytes() == model.infer(raw).probabilities.tobytes(),
        "counted": model.take() == counts,
        "without_xnnpack": float(
            np.abs(Model(ref, bundle, RuntimeOptions(xnnpack=False)).logits(raw) - expected).max()
        ),
        "dynamic": _refusal(lambda: Runtime((folder / "dynamic.tflite").read_bytes())),
        "training": _refusal(lambda: TrainingRuntime(bundle.files["training"], bundle.manifest.training)),
        "unknown": _unknown(folder),
    }


def _refusal(load):
    try:
        load()
    except RuntimeModelError as error:
        return str(error)
    return ""


def _unknown(folder: Path) -> list[str]:
    """Models of one operation that the agent's table and the library do not agree about."""
    from tflite_runtime.interpreter import Interpreter

    from edge_agent.runtime_operations import check_legacy

    wrong = []
    for path in sorted((folder / "operations").glob("*.tflite")):
        content = path.read_bytes()
        refused = bool(_refusal(lambda content=content: check_legacy(content)))
        try:
            Interpreter(model_content=content)
            loads = True
        except ValueError:
            loads = False
        if loads is refused:
            wrong.append(path.stem)
    return wrong


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
