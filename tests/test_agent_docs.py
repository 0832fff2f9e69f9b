"""docs/live.md names everything that goes in and comes out."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from stepaudio.agent import events, notices

PAGE = (Path(__file__).parent.parent / "docs" / "live.md").read_text("utf-8")


@pytest.mark.parametrize("union", [events.Event, notices.Output])
def test_the_contract_is_complete(union: object) -> None:
    assert [kind.__name__ for kind in get_args(union) if kind.__name__ not in PAGE] == []
