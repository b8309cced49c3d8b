"""Whether a grammar can be compiled, found out at a cost that is bounded and that only its sender pays.

Keeps one helper process a model, started with the first grammar, and the latest verdicts. Knows no requests.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Final

from cluster.grammar.helper import ACCEPTED, REFUSED
from cluster.grammar.language import KINDS, Grammar, GrammarError, TokenizerUnusableError

ANSWER_SECONDS: Final = 5.0
"""After that the machine is too busy to say: a child gets a tenth of it, unless others take all the rest."""
START_SECONDS: Final = 20.0
"""For reading the vocabulary, on a machine with much else to do."""
MAX_AT_ONCE: Final = 4
"""Children at a time; more grammars wait."""
MAX_VERDICTS: Final = 1024
TOO_COSTLY: Final = "is too costly to compile; make it smaller or less nested"


class ProbeBusyError(Exception):
    """The machine has no time to judge a grammar now."""


class GrammarProbe:
    """Judges grammars for one model. Used from one event loop; `close` it at the end."""

    def __init__(self, directory: Path, vocab_size: int, end_token_ids: tuple[int, ...]) -> None:
        self._arguments = [str(directory), str(vocab_size), *map(str, end_token_ids)]
        self._verdicts: OrderedDict[Grammar, str | None] = OrderedDict()
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._helper: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._unusable: str | None = None

    async def check(self, grammar: Grammar) -> None:
        """Return if the grammar can be compiled.

        Raises:
            GrammarError: it cannot, or not at a bounded cost.
            TokenizerUnusableError: none can, for this model.
            ProbeBusyError: nobody can say at the moment.
        """
        if grammar in self._verdicts:
            self._verdicts.move_to_end(grammar)
            refusal = self._verdicts[grammar]
        else:
            refusal = await self._ask(grammar)
            self._verdicts[grammar] = refusal
            if len(self._verdicts) > MAX_VERDICTS:
                self._verdicts.popitem(last=False)
        if refusal is not None:
            raise GrammarError(refusal)

    def close(self) -> None:
        """End the helper."""
        if self._helper is not None:
            process, control = self._helper
            self._helper = None
            control.close()
            process.kill()
            process.wait()

    async def _ask(self, grammar: Grammar) -> str | None:
        """None, or why the grammar is refused."""
        control = await self._started()
        async with self._slots:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(control, [b"."], [theirs.fileno()])
                except OSError:  # the helper is gone; the next grammar starts another
                    ours.close()
                    self.close()
                    raise ProbeBusyError from None
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await _converse(ours, bytes([KINDS.index(grammar.kind)]) + grammar.text.encode())
            except TimeoutError:
                raise ProbeBusyError from None
            except OSError:
                return TOO_COSTLY
        match answer[:1]:
            case b"+":
                return None
            case b"-":
                return answer[1:].decode()
            case _:  # killed
                return TOO_COSTLY

    async def _started(self) -> socket.socket:
        """The helper's socket."""
        async with self._starting:
            if self._unusable is None and self._helper is None:
                await self._start()
            if self._unusable is not None or self._helper is None:
                raise TokenizerUnusableError(self._unusable or "the helper process did not start")
            return self._helper[1]

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "cluster.grammar.helper", str(theirs.fileno()), *self._arguments]
            process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)  # noqa: ASYNC220
        self._helper = process, ours
        ours.setblocking(False)
        try:
            async with asyncio.timeout(START_SECONDS):
                answer = await asyncio.get_running_loop().sock_recv(ours, 1024)
        except TimeoutError:
            self.close()
            raise ProbeBusyError from None
        except (OSError, asyncio.CancelledError):
            self.close()
            raise
        if answer != ACCEPTED:
            self.close()
            if answer.startswith(REFUSED):
                self._unusable = answer[1:].decode()


async def _converse(connection: socket.socket, question: bytes) -> bytes:
    """Everything that the other end answers before it closes."""
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        writer.write(question)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
