"""A process that compiles strangers' grammars in children that can neither run for long nor grow without end.

`python -m cluster.grammar.helper FD DIRECTORY VOCABULARY END_TOKEN...`: reads the vocabulary once, writes what came of
it to the socket FD, then takes one socket a grammar from FD. Each is served by a child forked for it: text in, verdict
out. A child that is killed says nothing, and that is a verdict too. Ends when FD does.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from llguidance import LLTokenizer

from cluster.grammar.language import (
    KINDS,
    MAX_GRAMMAR_BYTES,
    Grammar,
    GrammarError,
    TokenizerUnusableError,
    compile_grammar,
    load_tokenizer,
    one_line,
)

COMPILE_SECONDS: Final = 0.5
"""CPU time that a child may take. Not time on the clock: a busy machine must not make honest grammars fail."""
COMPILE_BYTES: Final = 512 * 2**20
"""What it may allocate."""
ACCEPTED: Final = b"+"
REFUSED: Final = b"-"


def main() -> None:
    """Serve until the other end of the socket is closed."""
    descriptor, directory, vocab_size, *end_token_ids = sys.argv[1:]
    control = socket.socket(fileno=int(descriptor))
    try:
        tokenizer = load_tokenizer(Path(directory), int(vocab_size), tuple(map(int, end_token_ids)))
    except TokenizerUnusableError as error:
        control.send(REFUSED + one_line(str(error)).encode())
        return
    control.send(ACCEPTED)
    # Ended children need no farewell.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                control.close()
                _confine()
                _judge(connection, tokenizer)


def _confine() -> None:
    """Have the kernel kill this process when it takes too long or too much."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, COMPILE_SECONDS)
    os.nice(5)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + COMPILE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What the library prints when memory runs out is for nobody.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _judge(connection: socket.socket, tokenizer: LLTokenizer) -> None:
    """Read one grammar (the index of its kind, one byte, then its text), answer, and end the process."""
    code = 1
    try:
        data = bytearray()
        while len(data) <= 1 + MAX_GRAMMAR_BYTES and (chunk := connection.recv(65_536)):
            data += chunk
        try:
            compile_grammar(tokenizer, Grammar(KINDS[data[0]], data[1:].decode()))
            connection.sendall(ACCEPTED)
        except GrammarError as error:
            connection.sendall(REFUSED + str(error).encode())
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's is this child's to tidy up


if __name__ == "__main__":
    main()
