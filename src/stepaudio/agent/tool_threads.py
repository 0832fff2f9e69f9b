"""Runs tool calls in threads, beside the event loop."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

from stepaudio.agent.tools import ToolProvider, encode
from stepaudio.errors import BusyError
from stepaudio.speech.roles import ToolCall

_MOST_THREADS = 16
"""A tool that blocks may be given up, but not stopped; beyond so many threads no more are started."""


class ToolThreads:
    """Runs the calls of one session."""

    def __init__(self, provider: ToolProvider) -> None:
        self._provider = provider
        self._threads = 0

    async def run(self, call: ToolCall) -> str:
        """The result, as the model reads it. Raises BusyError, or what the tool does.

        The call has a thread of its own, which may outlive it when it is cancelled: Python cannot stop it.
        """
        if self._threads >= _MOST_THREADS:
            raise BusyError("Too many calls have not come to an end.")
        result = await self._in_thread(call)
        return encode(await result if inspect.isawaitable(result) else result)

    async def _in_thread(self, call: ToolCall) -> Any:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            self._threads -= 1
            if answer.done():
                if inspect.iscoroutine(result):
                    result.close()
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def work() -> None:
            result, failure = None, None
            try:
                result = self._provider.run(call)
            except BaseException as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, failure)

        self._threads += 1
        threading.Thread(target=work, name="stepaudio-tool", daemon=True).start()
        return await answer
