"""A broker that accepts and then does not do its part, in one of several ways."""

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

Silence = Literal["tls", "connack", "puback", "everything", "denied"]


class DeadBroker:
    """Listens on `port` of 127.0.0.1 until it is stopped.

    What never comes: `tls` the handshake, `connack` the answer to CONNECT, `puback` a confirmation (pings are
    answered), `everything` any byte after CONNACK; `denied` answers CONNECT with "not authorized".

    Attributes:
        accepted: connections so far.
    """

    def __init__(self, pki: Path, port: int, silence: Silence) -> None:
        self.silence = silence
        self.accepted = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pki / "broker.crt", pki / "broker.key")
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        for one in self._open:
            with suppress(OSError):
                one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._open.append(connection)
                if self.silence != "tls":
                    threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError):
            connection = self._context.wrap_socket(raw, server_side=True)
            self._open.append(connection)
            connect = connection.recv(4096)
            version = connect[connect.index(b"MQTT") + 4]
            if self.silence == "connack":
                return
            if self.silence == "denied":
                connection.sendall(b"\x20\x03\x00\x87\x00" if version == 5 else b"\x20\x02\x00\x05")
                connection.close()
                return
            connection.sendall(b"\x20\x03\x00\x00\x00" if version == 5 else b"\x20\x02\x00\x00")
            while data := connection.recv(65536):
                if self.silence == "puback" and data.endswith(b"\xc0\x00"):
                    connection.sendall(b"\xd0\x00")
