"""The local inference API, without its sockets: a request comes in as bytes, an answer goes out (see docs/apps.md).

Open Inference Protocol v2. Inputs are raw samples, as a sample file holds them: the bundle's own transform runs here.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec
import numpy as np

from contract import inference
from contract.errors import ContractError
from contract.inference import HEADER_LENGTH, InferenceRequest, ModelMetadata, ServerMetadata, TensorMetadata
from contract.messages import BundleRef
from edge_agent import __version__
from edge_agent.errors import AgentError, ApiError, NotFiniteError, RuntimeModelError, SampleError, UnavailableError
from edge_agent.serving import Broken, Model, Serving

_LOG = logging.getLogger(__name__)
_RETRY_S = 5
_BROKEN = 20  # inferences in a row that fail in the interpreter: then the model gives way to the slot before
_NUMBERS = 256 * 1024  # in an output: what JSON makes of them takes forty times the memory of a model's own
_JSON = "application/json"
_BYTES = "application/octet-stream"
LARGE_BYTES = 64 * 1024  # of a body; of larger ones, one at a time is taken apart
DEFAULT_OUTPUTS = ("probabilities", "label")

AddSamples = Callable[[str, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class Answer:
    """What goes back to the app."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = _JSON


def refusal(status: int, message: str, **headers: str) -> Answer:
    """The protocol's error object; keyword arguments are headers, with `_` for `-`."""
    return Answer(status, inference.encode_error(message), {k.replace("_", "-"): v for k, v in headers.items()})


class Api:
    """Answers requests from what serves here."""

    def __init__(
        self,
        serving: Serving,
        *,
        record: Callable[[Model, int], None],
        add_samples: AddSamples | None = None,
        forward: Callable[[str, bytes, str | None], Answer] | None = None,
        push: Callable[[str, bytes], None] | None = None,
    ) -> None:
        """Prepare.

        Args:
            serving: the models.
            record: hears how many samples a model inferred and counted.
            add_samples: keeps labelled samples of a model: raw samples and their int64 labels; None keeps none.
            forward: asks the cloud for what cannot be served here: model, body, length of its JSON part.
            push: queues a body for the source of a name.
        """
        self._serving, self._record = serving, record
        self._failures: dict[str, int] = {}  # in a row, by model
        self._large = threading.Lock()
        self._add_samples, self._forward, self._push = add_samples, forward, push

    def answer(self, method: str, target: str, body: bytes = b"", header_length: str | None = None) -> Answer:
        """One request, whatever it is.

        Args:
            method: of HTTP.
            target: path, perhaps with a query, which is ignored.
            body: whole; its size was checked.
            header_length: of the header `Inference-Header-Content-Length`, where there is one.
        """
        parts = [unquote(part) for part in target.partition("?")[0].strip("/").split("/")]
        try:
            return self._route(method, parts, body, header_length)
        except ApiError as error:
            return refusal(error.status, str(error))
        except (ContractError, SampleError) as error:
            return refusal(400, str(error))
        except (UnavailableError, RuntimeModelError) as error:
            return refusal(503, str(error), Retry_After=str(_RETRY_S))
        except (AgentError, OSError) as error:
            _LOG.warning("%s %s: %s", method, target[:120], error)
            return refusal(507 if isinstance(error, OSError) else 500, str(error))

    def _route(self, method: str, parts: list[str], body: bytes, header_length: str | None) -> Answer:
        match parts:
            case ["v2"] if method == "GET":
                extensions = ["binary_tensor_data", "model_repository", "fieldfare_samples"]
                return _json(ServerMetadata("fieldfare edge-agent", __version__, extensions))
            case ["v2", "health", "live"] if method == "GET":
                return _json({"live": True})
            case ["v2", "health", "ready"] if method == "GET":
                ready = self._ready()
                return _json({"ready": ready}, 200 if ready else 503)
            case ["v2", "repository", "index"] if method in {"GET", "POST"}:
                return _json([self._index(name) for name in self._serving.names()])
            case ["v2", "sources", name] if method == "POST" and self._push is not None:
                with self._turn(body):
                    self._push(name, body)
                return _json({"queued": True}, 202)
            case ["v2", "models", name, *rest]:
                return self._model_route(method, name, rest, body, header_length)
        raise ApiError(404, f"nothing answers {method} /{'/'.join(parts)[:120]}; docs/apps.md lists what does")

    def _model_route(self, method: str, name: str, rest: list[str], body: bytes, header_length: str | None) -> Answer:
        version = None
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        match method, rest:
            case "GET", []:
                return _json(_metadata(self._model(name, version)))
            case "GET", ["ready"]:
                ref = self._serving.ref(name)
                if ref is None:
                    raise self._missing(name)
                _check_version(ref, version)
                return _json({"name": name, "ready": True})
            case "POST", ["infer"]:
                return self._infer(name, version, body, header_length)
            case "POST", ["samples"] if version is None:
                return self._samples(name, body, header_length)
        raise ApiError(
            404, f"nothing answers {method} .../{'/'.join(rest)[:120]} of a model; docs/apps.md lists what does"
        )

    def _ready(self) -> bool:
        return bool(self._serving.names())

    def _index(self, name: str) -> dict[str, str]:
        ref = self._serving.ref(name)
        if ref is None:  # it was taken off the device just now
            return {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "it does not serve any more"}
        reason = "" if self._serving.get(name) is not None else "it is loaded when it is asked for"
        return {"name": name, "version": str(ref.version), "state": "READY", "reason": reason}

    def _model(self, name: str, version: str | None) -> Model:
        if self._serving.ref(name) is None:
            raise self._missing(name)
        with self._serving.use(name) as model:
            _check_version(model.ref, version)
            return model

    def _missing(self, name: str) -> ApiError | UnavailableError:
        names = self._serving.names()
        if name in names or not names:
            what = f"the model {name!r} cannot serve now" if names else "no model serves on this device yet"
            return UnavailableError(f"{what}; a rollout brings one, and `edge-agent status` says what happened")
        return ApiError(404, f"no model {name[:64]!r} on this device; it has {', '.join(names)}")

    def _infer(self, name: str, version: str | None, body: bytes, header_length: str | None) -> Answer:
        if self._serving.ref(name) is None:
            return self._elsewhere(name, body, header_length, self._missing(name))
        try:
            with self._turn(body):
                answer = self._infer_here(name, version, body, header_length)
        except (UnavailableError, RuntimeModelError) as error:
            self._note_failure(name, error)
            return self._elsewhere(name, body, header_length, error)
        self._failures.pop(name, None)
        return answer

    def _turn(self, body: bytes) -> AbstractContextManager[object]:
        """Within it a body is taken apart: one large one at a time, since numbers take many times the memory."""
        return self._large if len(body) > LARGE_BYTES else nullcontext()

    def _infer_here(self, name: str, version: str | None, body: bytes, header_length: str | None) -> Answer:
        request = inference.decode_request(body, _length(header_length))
        x = _only(request, ["x"])["x"]
        with self._serving.use(name) as model:
            _check_version(model.ref, version)
            outputs = self._outputs(model, x, request)
        content, length = inference.encode_response(
            model=name,
            version=str(model.ref.version),
            request_id=request.id,
            outputs=outputs,
            binary=request.outputs or dict.fromkeys(outputs, request.binary),
            parameters={"variant": model.ref.variant, "bundle_sha256": model.ref.sha256},
        )
        if length is None:
            return Answer(200, content)
        return Answer(200, content, {HEADER_LENGTH: str(length)}, _BYTES)

    def _outputs(self, model: Model, x: np.ndarray, request: InferenceRequest) -> dict[str, np.ndarray | list[str]]:
        wanted = request.outputs or DEFAULT_OUTPUTS
        known = {output.name for output in _metadata(model).outputs}
        if not known.issuperset(wanted):
            raise ApiError(400, f"outputs are {', '.join(sorted(known))}; asked for {', '.join(wanted)[:200]}")
        if len(x) * len(model.labels) > _NUMBERS:
            most = max(_NUMBERS // len(model.labels), 1)
            raise ApiError(413, f"{len(x)} samples at a time; this model takes {most}: send fewer")
        if len(x) == 1:
            output = model.step(x[0])
            probabilities, logits = model.probabilities(output), model.read(output)
        else:
            probabilities = model.predict(x)
            logits = model.logits(x) if "logits" in wanted else probabilities
        self._record(model, len(x))
        classes = probabilities.argmax(axis=1)
        made: dict[str, np.ndarray | list[str]] = {}
        for name in wanted:
            match name:
                case "probabilities":
                    made[name] = probabilities
                case "label":
                    made[name] = [model.labels[index] for index in classes]
                case "class":
                    made[name] = classes.astype(np.int64)
                case _:
                    made[name] = logits
        return made

    def _note_failure(self, name: str, error: AgentError) -> None:
        """Give up a model whose interpreter fails in a row; an output that is not finite may be the app's doing."""
        if not isinstance(error, RuntimeModelError) or isinstance(error, NotFiniteError):
            return
        failures = self._failures.get(name, 0) + 1
        self._failures[name] = failures % _BROKEN
        ref = self._serving.ref(name)
        if failures == _BROKEN and ref is not None:
            reason = f"{failures} inferences in a row failed, the last: {error}"
            self._serving.broken.put(Broken(ref, reason, on_disk=False))

    def _elsewhere(self, name: str, body: bytes, header_length: str | None, error: Exception) -> Answer:
        if self._forward is None:
            raise error
        try:
            return self._forward(name, body, header_length)
        except UnavailableError as unavailable:
            raise UnavailableError(f"{error}; and {unavailable}") from unavailable

    def _samples(self, name: str, body: bytes, header_length: str | None) -> Answer:
        if self._add_samples is None:
            raise ApiError(501, "this device keeps no samples; samples.quota_bytes in agent.toml says how many it may")
        model = self._model(name, None)
        with self._turn(body):
            return self._keep(model, body, header_length, self._add_samples)

    def _keep(self, model: Model, body: bytes, header_length: str | None, add: AddSamples) -> Answer:
        arrays = _only(inference.decode_request(body, _length(header_length)), ["x", "y"])
        x, y = arrays["x"], arrays["y"]
        if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
            raise SampleError(f"`y` is {y.dtype}{list(y.shape)}, expected integers of shape [{len(x)}]")
        if y.min() < 0 or y.max() >= len(model.labels):
            raise SampleError(f"a label is outside 0 to {len(model.labels) - 1}")
        model.check(x)
        add(model.ref.model, x, y.astype(np.int64))
        return _json({"accepted": len(x)})


def _json(message: object, status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(message))


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(400, f"{HEADER_LENGTH} must be a number of bytes, is {text[:32]!r}")
    return int(text)


def _only(request: InferenceRequest, names: list[str]) -> Mapping[str, np.ndarray]:
    if sorted(request.inputs) != names:
        got = ", ".join(sorted(request.inputs))[:200] or "none"
        raise ApiError(400, f"inputs must be {' and '.join(names)}, are {got}")
    return request.inputs


def _check_version(ref: BundleRef, version: str | None) -> None:
    if version not in {None, str(ref.version)}:
        serves = f"version {ref.version} of {ref.model!r} serves here"
        raise ApiError(404, f"{serves}, not {str(version)[:32]!r}; leave the version out to use what serves")


def _metadata(model: Model) -> ModelMetadata:
    classes = len(model.labels)
    return ModelMetadata(
        name=model.ref.model,
        versions=[str(model.ref.version)],
        platform="litert_tflite",
        inputs=[TensorMetadata("x", "FP32", [-1, *model.input_shape])],
        outputs=[
            TensorMetadata("probabilities", "FP32", [-1, classes]),
            TensorMetadata("label", "BYTES", [-1]),
            TensorMetadata("class", "INT64", [-1]),
            TensorMetadata("logits", "FP32", [-1, classes]),
        ],
        parameters={"variant": model.ref.variant, "bundle_sha256": model.ref.sha256},
    )
