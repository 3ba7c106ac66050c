"""The routes of enrolment and renewal over real HTTPS, with a real certificate authority."""

import base64
import json
import ssl
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from contract import signatures
from contract.errors import SignatureError
from coordinator import pki

TOKEN = "one-time-token"


class Api:
    """The enrolment route, with a real certificate authority."""

    def __init__(self, state: Path) -> None:
        pki.create(state)
        self.ca = state / "pki" / "ca.crt"
        self.requests: list[dict[str, str]] = []
        self.authority = pki.Authority.load(state)
        self.device = "meter-1"
        self.issued = b""
        api = self

        class Route(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = json.loads(body) if body else {"authorization": self.headers["Authorization"]}
                status_code, answer = api.answer(self.path, request)
                content = json.dumps(answer).encode()
                self.send_response(status_code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Route)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(state / "pki" / "api.crt", state / "pki" / "api.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def answer(self, path: str, request: dict[str, str]) -> tuple[int, dict[str, object]]:
        self.requests.append(request)
        if path == "/v1/renew":
            return self.renew(request["authorization"])
        if path != "/v1/enrol" or request["token"] != TOKEN:
            return 403, {"error": "this enrolment token is unknown, used or expired; ask for a new one"}
        certificate = self.authority.sign_csr(request["csr"].encode(), self.device, days=1, now=datetime.now(UTC))
        self.issued = certificate
        return 201, {
            "device": self.device,
            "certificate": certificate.decode(),
            "ca": self.authority.ca_pem.decode(),
            "broker_host": "127.0.0.1",
            "broker_port": 8883,
            "root": base64.b64encode(b'{"signed": {}}').decode(),
        }

    def renew(self, authorization: str) -> tuple[int, dict[str, object]]:
        scheme, _, token = authorization.partition(" ")
        claim, payload, signature = signatures.read_token(token)
        try:
            signatures.verify(self.issued, payload, signature)
        except SignatureError as error:
            return 403, {"error": str(error)}
        if (scheme, claim.audience) != ("Fieldfare-Device", "renew"):
            return 401, {"error": "another scheme or audience"}
        now = datetime.now(UTC)
        return 200, {"certificate": self.authority.renew(self.issued, claim.device, days=30, now=now).decode()}

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
