"""A server in a process of its own, so that what it takes of the machine can be told from what its clients take:
`python talk_server.py` prints its address, and runs until its input ends."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from realtime_fixtures import TalkBundle
from serve_fixtures.live import live

if __name__ == "__main__":
    bundle = TalkBundle()
    bundle.responder.answer = lambda messages, tools: ["word " * 40]
    with live(bundle, max_sessions=400) as server:
        print(server.url, flush=True)
        sys.stdin.read()
