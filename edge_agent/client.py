"""The client for apps on the device; it needs Python and numpy alone, so an app may also carry a copy of this file.

with Client(socket="/var/lib/fieldfare/api.sock") as client:
    result = client.infer("digits", images)
    print(result.labels, result.probabilities.max(axis=1), result.version)
"""

import http.client
import json
import math
import os
import socket as sockets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import numpy as np

_HEADER_LENGTH = "Inference-Header-Content-Length"
_IDLE_S = 30.0  # the agent closes a connection that is idle for a minute
_DATATYPES = {"b": "BOOL", "u": "UINT", "i": "INT", "f": "FP"}
_DTYPES = {"BOOL": "?", "FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "INT32": "<i4"}


class ClientError(Exception):
    """The agent refused a request, or cannot be reached.

    Attributes:
        status: of HTTP; 0 where there was no answer.
    """

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Result:
    """What the model says, one row or entry a sample.

    Attributes:
        probabilities: float32, shape (n, classes).
        labels: names of the most probable classes.
        model, version: what served; all of a result is from one version.
        outputs: all that came, by name: also `class` and `logits` where they were asked for.
        parameters: `variant` and `bundle_sha256` of what served.
        served_by: `device`, or `cloud` where the device's fallback answered.
    """

    probabilities: np.ndarray
    labels: list[str]
    model: str
    version: str
    outputs: dict[str, Any] = field(repr=False)
    parameters: dict[str, str] = field(repr=False)
    served_by: str = "device"


class Client:
    """Talks to the agent over its Unix socket or loopback HTTP. Not for several threads at once: one client each."""

    def __init__(
        self,
        *,
        socket: str | os.PathLike[str] | None = None,
        url: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 3,
        max_wait_s: float = 5.0,
    ) -> None:
        """Connect at the first request.

        Args:
            socket: path of the agent's Unix socket.
            url: or its loopback address, such as `http://127.0.0.1:8080`.
            timeout_s: of an answer.
            retries: after 429 (too many requests) and 503 (no model now), each when the agent says, else after a
                growing pause.
            max_wait_s: the longest of these pauses; where the agent says longer, the error is raised.
        """
        if (socket is None) == (url is None):
            raise ValueError("a client needs socket=PATH or url=http://127.0.0.1:PORT, and not both")
        self._socket = None if socket is None else Path(socket)
        self._where = str(socket or url)
        self._address = urlsplit(url or "//127.0.0.1")
        self._timeout_s, self._retries, self._max_wait_s = timeout_s, retries, max_wait_s
        self._connection: http.client.HTTPConnection | None = None
        self._used_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def infer(self, model: str, x: np.ndarray, *, outputs: Sequence[str] = (), binary: bool = True) -> Result:
        """Ask a model.

        Args:
            model: its name.
            x: raw samples, as the bundle's transform takes them: shape (n, *input_shape); one sample is `x[None]`.
            outputs: beside probabilities and labels: `class`, `logits`.
            binary: send and ask for bytes; False speaks JSON, which cannot hold NaN.

        Raises:
            ClientError: refused, or no answer.
        """
        header: dict[str, Any] = {"parameters": {"binary_data_output": binary}}
        if outputs:
            header["outputs"] = [{"name": name} for name in dict.fromkeys(["probabilities", "label", *outputs])]
        answer, headers = self._post(f"/v2/models/{quote(model, safe='')}/infer", header, {"x": x}, binary=binary)
        decoded, arrays = _decode(answer, headers.get(_HEADER_LENGTH))
        return Result(
            probabilities=arrays["probabilities"],
            labels=list(arrays.get("label", [])),
            model=decoded["model_name"],
            version=decoded.get("model_version", ""),
            outputs=arrays,
            parameters=decoded.get("parameters", {}),
            served_by=headers.get("X-Fieldfare-Served-By", "device"),
        )

    def add_samples(self, model: str, x: np.ndarray, y: np.ndarray) -> int:
        """Hand in labelled samples; the device keeps them, encrypted, for training here.

        Args:
            model: whose input they are.
            x: raw samples, shape (n, *input_shape).
            y: integer labels, shape (n,).

        Returns:
            How many were kept.

        Raises:
            ClientError: refused, or no answer; then they may or may not have been kept.
        """
        path = f"/v2/models/{quote(model, safe='')}/samples"
        answer, _ = self._post(path, {}, {"x": x, "y": np.asarray(y)}, binary=True)
        return int(json.loads(answer)["accepted"])

    def ready(self, model: str | None = None) -> bool:
        """Whether a model serves, or all of them; False where the agent cannot be reached."""
        path = "/v2/health/ready" if model is None else f"/v2/models/{quote(model, safe='')}/ready"
        try:
            return self._once("GET", path, b"", {})[0] == 200
        except ClientError:
            return False

    def models(self) -> list[dict[str, str]]:
        """What serves: `name`, `version`, `state`."""
        return list(json.loads(self._ask("GET", "/v2/repository/index", b"", {})[0]))

    def metadata(self, model: str) -> dict[str, Any]:
        """A model's inputs and outputs with shapes, and its version."""
        return dict(json.loads(self._ask("GET", f"/v2/models/{quote(model, safe='')}", b"", {})[0]))

    def _post(
        self, path: str, header: dict[str, Any], inputs: dict[str, np.ndarray], *, binary: bool
    ) -> tuple[bytes, dict[str, str]]:
        tensors, tail = [], []
        for name, values in inputs.items():
            array = np.ascontiguousarray(values)
            if array.dtype.kind not in _DATATYPES:
                raise ValueError(f"{name} must hold numbers, has dtype {array.dtype}")
            tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": _datatype(array.dtype)}
            if binary:
                tail.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
                tensor["parameters"] = {"binary_data_size": len(tail[-1])}
            else:
                tensor["data"] = array.ravel().tolist()
            tensors.append(tensor)
        encoded = json.dumps({**header, "inputs": tensors}, allow_nan=False).encode()
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(encoded))} if binary else {}
        return self._ask("POST", path, b"".join([encoded, *tail]), headers)

    def _ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, dict[str, str]]:
        pause = 0.1
        for attempt in range(self._retries + 1):
            status, answer, got = self._once(method, path, body, headers)
            if status == 200:
                return answer, got
            wait = float(got.get("Retry-After", math.nan))
            wait = pause if math.isnan(wait) else wait
            if status not in {429, 503} or attempt == self._retries or wait > self._max_wait_s:
                break
            time.sleep(wait)
            pause = min(2 * pause, self._max_wait_s)
        raise ClientError(_complaint(answer, status), status=status)

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        connection = self._connected()
        try:
            connection.request(method, path, body or None, headers)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the agent may have refused before it read everything; its answer says why
        except OSError as error:
            self.close()
            raise ClientError(f"{self._where}: {error.strerror or error}; does the agent run?") from error
        try:
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ClientError(f"{self._where}: no answer: {error or type(error).__name__}") from error
        self._used_at = time.monotonic()
        if response.will_close:
            self.close()
        return response.status, answer, dict(response.headers.items())

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is not None and time.monotonic() - self._used_at > _IDLE_S:
            self.close()
        if self._connection is None:
            if self._socket is not None:
                self._connection = _UnixConnection(self._socket, self._timeout_s)
            else:
                host, port = self._address.hostname or "", self._address.port
                self._connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        return self._connection


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Through the folder's descriptor, because the path of a socket may have 107 bytes only."""
        self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
            finally:
                os.close(folder)
        except OSError:
            self.sock.close()
            raise


def _datatype(dtype: np.dtype) -> str:
    return "BOOL" if dtype.kind == "b" else f"{_DATATYPES[dtype.kind]}{8 * dtype.itemsize}"


def _decode(body: bytes, header_length: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of an answer, and its tensors by name."""
    end = len(body) if header_length is None else int(header_length)
    header: dict[str, Any] = json.loads(body[:end])
    arrays: dict[str, Any] = {}
    for tensor in header["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = tensor["data"]
        else:
            values, end = body[end : end + size], end + size
        arrays[tensor["name"]] = _tensor(tensor, values)
    return header, arrays


def _tensor(tensor: dict[str, Any], values: Any) -> Any:
    if tensor["datatype"] == "BYTES":
        return _strings(values) if isinstance(values, bytes) else list(values)
    dtype = np.dtype(_DTYPES[tensor["datatype"]])
    array = np.frombuffer(values, dtype) if isinstance(values, bytes) else np.array(values, dtype)
    return array.reshape(tensor["shape"])


def _strings(content: bytes) -> list[str]:
    found, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "little")
        found.append(content[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return found


def _complaint(answer: bytes, status: int) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the agent answered with status {status}"
