"""A worker process without Ray: `python -m support.worker_process [--fake SECONDS]`, its spec in $WORKER_SPEC."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import threading

from support.paged_fake import load_fake
from support.replicas import worker_spec

from cluster.launch import describe, log_config
from cluster.logs import configure_logging
from cluster.worker.actor import WorkerActor
from cluster.worker.bootstrap import load_shard


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fake", type=float, default=None)
    arguments = parser.parse_args()
    fake = functools.partial(load_fake, pass_seconds=arguments.fake)
    bootstrap = load_shard if arguments.fake is None else fake
    spec = worker_spec(json.loads(os.environ["WORKER_SPEC"]))
    configure_logging(log_config(spec), **describe(spec))
    actor = WorkerActor(spec, bootstrap=bootstrap)
    asyncio.run(actor.start())
    threading.Event().wait()  # the actor's own threads end the process


if __name__ == "__main__":
    main()
