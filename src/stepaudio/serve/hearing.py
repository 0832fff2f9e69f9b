"""The recordings that a request brings, on their way to text."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from threading import Event

from stepaudio.audio.io import Source, stream
from stepaudio.audio.pcm import Samples
from stepaudio.serve.state import ServerState
from stepaudio.speech.transcribe import Segment, transcribe


class Hearing:
    """Hears the recordings of one request, which share the server's limit on its audio."""

    def __init__(self, server: ServerState) -> None:
        self.seconds = 0.0
        """Audio decoded so far."""
        self._server = server

    def segments(
        self,
        source: Source,
        cancel: Event,
        *,
        language: str | None = None,
        prompt: str | None = None,
        words: bool = False,
    ) -> Iterator[Segment]:
        """What is said in a recording, piece by piece. Raises AudioError, and TooLargeError past the limit."""
        bundle = self._server.bundle
        transcriber = bundle.transcriber
        with closing(self._blocks(source, transcriber.rate)) as blocks:
            yield from transcribe(
                transcriber, blocks, vad=bundle.vad, language=language, prompt=prompt, words=words, cancel=cancel
            )

    def _blocks(self, source: Source, rate: int) -> Generator[Samples]:
        for block in stream(source, rate=rate, max_seconds=self._server.settings.max_audio_seconds - self.seconds):
            self.seconds += len(block) / rate
            self._server.metrics.audio_seconds.labels("in").inc(len(block) / rate)
            yield block
