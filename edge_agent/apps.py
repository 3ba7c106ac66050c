"""What programs on the device meet, put together: the local API, what stands in for it, kept samples, and sources."""

import logging
import threading
import time

from edge_agent.api import Api
from edge_agent.api_server import ApiServer
from edge_agent.config import Config, Folder
from edge_agent.errors import UnavailableError
from edge_agent.events import Tell
from edge_agent.fallback import Cloud
from edge_agent.liveness import Stopping
from edge_agent.monitor import Monitor
from edge_agent.samplestore import SampleStore
from edge_agent.serving import Serving
from edge_agent.sources.push import Pushes
from edge_agent.sources.worker import SourceWorker
from edge_agent.state import State

_LOG = logging.getLogger(__name__)


class Apps:
    """The part of the agent that faces other programs.

    Attributes:
        store: samples that they hand in; None where none are kept.
    """

    def __init__(
        self,
        config: Config,
        folder: Folder,
        *,
        serving: Serving,
        monitor: Monitor,
        state: State,
        stopping: Stopping,
        tell: Tell,
    ) -> None:
        """Put it together; nothing listens and nothing is pulled yet."""
        self._config, self._folder, self._state, self._stopping = config, folder, state, stopping
        self._said = ""
        self.store = self._make_store()
        keep = self.store.add if self.store else None
        pushes = Pushes()
        forward = self._make_cloud().forward if config.api.fallback_url else None
        api = Api(serving, record=monitor.record, add_samples=keep, forward=forward, push=pushes.offer)
        self._server = ApiServer(api, config, folder.root)
        self._sources = [
            SourceWorker(
                source,
                serving=serving,
                monitor=monitor,
                state=state,
                stopping=stopping,
                pushes=pushes,
                keep=keep,
                clock=time.time,
                tell=tell,
            )
            for source in config.sources
        ]

    def serve(self, _wake: threading.Event) -> None:
        """Serve the local API until `stop`.

        Raises:
            UnavailableError: it cannot listen.
        """
        try:
            with self._stopping.resting():
                self._server.serve()
        except UnavailableError as error:
            if str(error) != self._said:  # it is tried again and again
                self._said = str(error)
                _LOG.warning("%s", error)
                self._state.event("api", str(error), at=time.time())
            raise

    def stop(self) -> None:
        """Ask `serve` to return."""
        self._server.stop()

    def threads(self) -> list[threading.Thread]:
        """A thread for each source, not started; they end when the agent is asked to."""
        return [threading.Thread(target=source.run, name=source.name) for source in self._sources]

    def kept(self) -> int:
        """Labelled samples in the store, of all models."""
        return sum(self.store.counts().values()) if self.store else 0

    def _make_store(self) -> SampleStore | None:
        if not self._config.samples.quota_bytes:
            return None
        return SampleStore(
            self._folder.samples,
            quota_bytes=self._config.samples.quota_bytes,
            keep_s=self._config.samples.keep_days * 86400,
            clock=self._state.running_s,
            event=lambda text: self._state.event("samples", text, at=time.time()),
        )

    def _make_cloud(self) -> Cloud:
        token = self._config.api.fallback_token_file
        return Cloud(
            self._config.api.fallback_url,
            token_file=self._folder.root / token if token else None,
            ca=self._folder.ca,
            event=lambda text: self._state.event("fallback", text, at=time.time()),
        )
