import pytest

from stepaudio.errors import NotFoundError
from stepaudio.serve import past_audio
from stepaudio.serve.past_audio import PastRecordings, PastReplies


def test_a_reply_is_remembered_until_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    replies = PastReplies()
    audio_id, _ = replies.new()
    replies.keep(audio_id, "good morning")
    assert replies.transcript(audio_id) == "good morning"
    with pytest.raises(NotFoundError, match="unknown or has expired"):
        replies.transcript(replies.new()[0])
    monkeypatch.setattr(past_audio, "LIFETIME_SECONDS", -1)
    replies.keep(audio_id, "good morning")
    with pytest.raises(NotFoundError):
        replies.transcript(audio_id)


def test_the_oldest_recordings_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past_audio, "MAX_CHARS", 1000)
    recordings = PastRecordings()
    for i in range(100):
        recordings.keep(b"%d" % i, "x" * 36)
        recordings.keep(b"%d" % i, "y" * 36)
    # A hundred characters each, with their key.
    kept = [i for i in range(100) if recordings.transcript(b"%d" % i) is not None]
    assert kept == list(range(90, 100))
    assert recordings.transcript(b"99") == "y" * 36
    recordings.keep(b"long", "z" * 2000)
    assert all(recordings.transcript(b"%d" % i) is None for i in range(100))
