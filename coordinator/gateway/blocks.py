"""Block requests, joined: many devices that ask for one block get one publication of it. Pure; time is an argument."""

from collections.abc import Iterable

COALESCE_S = 0.05
PER_TICK = 64  # blocks published at once, so that nothing else waits long behind them


class BlockQueue:
    """Blocks that somebody waits for, in the order in which they were first asked for.

    One thread may ask while another takes: what is asked for just then is published after, or is due next time.
    """

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], float] = {}

    def ask(self, sha256: str, blocks: Iterable[int], now: float) -> None:
        """Somebody asks; who asks for a block that is waited for already adds nothing."""
        for block in blocks:
            self._since.setdefault((sha256, block), now)

    def due(self, now: float) -> list[tuple[str, int]]:
        """Take the blocks to publish now: asked for at least `COALESCE_S` ago, oldest first, at most `PER_TICK`."""
        ready = [key for key, since in list(self._since.items()) if now - since >= COALESCE_S][:PER_TICK]
        for key in ready:
            del self._since[key]
        return ready

    def __len__(self) -> int:
        return len(self._since)
