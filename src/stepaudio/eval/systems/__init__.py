"""Systems under test, by one line of text: whatever is judged is judged by the same commands.

| written | is |
|---|---|
| `small`, `my.toml` | a bundle, in this process |
| `http://HOST/v1`, `http://HOST/v1#MODEL` | an OpenAI-compatible endpoint over REST |
| `ws://HOST/v1`, `wss://HOST/v1#MODEL` | the same over the Realtime protocol |
| `codec:opus-12k`, `codec:g711` | a codec to compare resynthesis with |
| a folder | outputs made elsewhere |
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from stepaudio.errors import InputError
from stepaudio.eval.items import Kind, Reply, Request
from stepaudio.eval.store import Store

MAX_TOKENS = 200
"""Longest reply, in the tokens of the system's model: spoken replies are short."""


class System(Protocol):
    """Something that can be judged. `run` is called from several threads at once, as many as `parallel` says."""

    name: str
    """Names its run: a file name."""
    fingerprint: str
    """Changes when the outputs may."""
    kinds: frozenset[Kind]
    """What it can be asked."""

    def parallel(self, kind: Kind) -> int:
        """How many requests to have under way at once. Timed kinds are better asked one by one."""
        ...

    def prepare(self, kind: Kind) -> None:
        """Load what such requests need, so that nothing is timed that happens only once."""
        ...

    def run(self, request: Request) -> tuple[Reply, ...]:
        """Replies to a request. Raises StepAudioError when it cannot be answered."""
        ...

    def close(self) -> None: ...


def open_system(written: str, *, key: str | None = None, store: Store | None = None) -> System:
    """The system of that line. `key` is for endpoints that ask for one; bundles keep in the `store` what
    others can use. Raises InputError, NotFoundError."""
    if not written:
        raise InputError("name a system: a bundle, a URL, codec:NAME or a folder of outputs", param="system")
    scheme = written.partition("://")[0]
    if scheme in ("http", "https"):
        from stepaudio.eval.systems.rest import RestSystem

        return RestSystem(written, key=key)
    if scheme in ("ws", "wss"):
        from stepaudio.eval.systems.realtime import RealtimeSystem

        return RealtimeSystem(written, key=key)
    if written.startswith("codec:"):
        from stepaudio.eval.systems.codec import CodecSystem

        return CodecSystem(written.removeprefix("codec:"))
    if Path(written).is_dir():
        from stepaudio.eval.systems.folder import FolderSystem

        return FolderSystem(Path(written))
    from stepaudio.eval.systems.bundle import BundleSystem

    return BundleSystem(written, store)
