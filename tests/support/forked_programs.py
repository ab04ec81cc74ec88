"""Programs in processes of their own, forked from one that has imported PyTorch: importing it takes each seconds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

_CONTEXT = multiprocessing.get_context("forkserver")
# It computes nothing, so that no thread is lost in a fork.
_CONTEXT.set_forkserver_preload(["torch", "cmx_fast.distributed", "cmx_fast.train.loop"])


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As ``python -c program arguments``, for a program that may find modules imported."""
    readers, writers = zip(*(_CONTEXT.Pipe(duplex=False) for _ in range(2)))
    process = _CONTEXT.Process(target=_run, args=(program, arguments, *writers))
    process.start()
    for writer in writers:
        writer.close()
    with ThreadPoolExecutor(2) as pool:
        out, error = pool.map(_read, readers)
    process.join()
    return subprocess.CompletedProcess(program, process.exitcode, out, error)


def _run(program: str, arguments: tuple[str, ...], out: Connection, error: Connection) -> None:
    for stream, connection in ((1, out), (2, error)):
        os.dup2(connection.fileno(), stream)
        connection.close()
    sys.argv = ["-c", *arguments]
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})


def _read(connection: Connection) -> str:
    with connection, open(connection.fileno(), closefd=False) as file:
        return file.read()
