"""What was said earlier in conversations: spoken replies by their id, the user's recordings by their content."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from hashlib import sha256
from threading import Lock

from stepaudio.errors import NotFoundError

LIFETIME_SECONDS = 3600
MAX_REMEMBERED = 10_000


class PastReplies:
    """The transcripts of spoken replies, for an hour each. The text is all that a conversation needs of them."""

    def __init__(self) -> None:
        self._transcripts = _Remembered()

    @staticmethod
    def new() -> tuple[str, int]:
        """An id for a reply that is about to be spoken, and the Unix time at which it expires."""
        return f"audio_{uuid.uuid4().hex}", int(time.time()) + LIFETIME_SECONDS

    def keep(self, audio_id: str, transcript: str) -> None:
        """Remember what was said."""
        self._transcripts.put(audio_id, transcript)

    def transcript(self, audio_id: str) -> str:
        """What was said. Raises NotFoundError when the reply is unknown or has expired."""
        transcript = self._transcripts.get(audio_id)
        if transcript is None:
            raise NotFoundError(
                f"The audio `{audio_id}` is unknown or has expired; send the message's text in its place.",
                param="messages",
            )
        return transcript


class PastRecordings:
    """The transcripts of recordings in conversations: each request brings the whole history again, and what has been
    heard once need not be heard again."""

    def __init__(self) -> None:
        self._transcripts = _Remembered()

    def keep(self, recording: bytes, transcript: str) -> None:
        """Remember what was heard."""
        self._transcripts.put(sha256(recording).hexdigest(), transcript)

    def transcript(self, recording: bytes) -> str | None:
        """What was heard, or None when it has to be heard (again)."""
        return self._transcripts.get(sha256(recording).hexdigest())


class _Remembered:
    """At most `MAX_REMEMBERED` texts, each for `LIFETIME_SECONDS`; the oldest makes room. Safe between threads."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._lock = Lock()

    def put(self, key: str, text: str) -> None:
        with self._lock:
            self._texts.pop(key, None)
            self._texts[key] = time.monotonic() + LIFETIME_SECONDS, text
            while len(self._texts) > MAX_REMEMBERED:
                self._texts.popitem(last=False)

    def get(self, key: str) -> str | None:
        with self._lock:
            expires, text = self._texts.get(key, (0.0, ""))
        return text if expires > time.monotonic() else None
