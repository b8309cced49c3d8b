"""Ray's Jobs API as `argosy submit` uses it: submit, follow, ask, stop; every failure in one line. Knows no regions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ConfigurationError

ANSWER_SECONDS = 10.0
FOLLOW_SECONDS = 1.0
"""Before a connection to the logs that broke is tried again."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that tell a user about zip files and sockets."""
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What Ray is asked to run."""

    entrypoint: str
    """One shell command."""
    runtime_env: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job does."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    """What Ray says of it; may have many lines."""
    metadata: dict[str, str]

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


class Jobs:
    """The jobs of one Ray head."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: `http://HEAD:8265`.

        Raises:
            ConfigurationError: nothing answers there, it speaks no Jobs API, or it wants another token.
        """
        if not address.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"--address: {address!r} is not the Jobs API of a Ray head, such as http://HEAD:8265"
            )
        self.address = address.rstrip("/")
        # Ray would prefer these to the address that was given.
        for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(variable, None)
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError:
            raise ConfigurationError("this needs Ray; install argosy[jobs]") from None
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._explained():
            self._client = JobSubmissionClient(self.address)
            self._client.list_jobs()

    @property
    def is_open(self) -> bool:
        """Whether the head runs jobs of anybody who reaches it, because it is not in token mode."""
        import requests

        with self._explained():
            return requests.get(f"{self.address}/api/jobs/", timeout=ANSWER_SECONDS).status_code == 200

    def submit(self, spec: JobSpec) -> str:
        """Hand a job over, its working directory included; its id."""
        with self._explained():
            job_id: str = self._client.submit_job(
                entrypoint=spec.entrypoint, runtime_env=spec.runtime_env, metadata=spec.metadata
            )
        return job_id

    def state(self, job_id: str) -> JobState:
        """How it does.

        Raises:
            ConfigurationError: there is no such job.
        """
        with self._explained(job_id):
            found = self._client.get_job_info(job_id)
        status = getattr(found.status, "value", found.status)
        return JobState(job_id, str(status), found.message or "", dict(found.metadata or {}))

    def stop(self, job_id: str) -> bool:
        """Ask it to end; False if it had ended already."""
        with self._explained(job_id):
            return bool(self._client.stop_job(job_id))

    async def follow(self, job_id: str) -> AsyncIterator[str]:
        """What it writes, from its beginning until it has ended, over connections that may break."""
        shown = 0
        while True:
            seen = 0
            # A connection that ends early begins again with the first line.
            with contextlib.suppress(RuntimeError, OSError):
                async for piece in self._client.tail_job_logs(job_id):
                    seen += len(piece)
                    if seen > shown:
                        yield piece[len(piece) - (seen - shown) :] if seen - shown < len(piece) else piece
                        shown = seen
            if (await asyncio.to_thread(self.state, job_id)).has_ended:
                break
            await asyncio.sleep(FOLLOW_SECONDS)
        with self._explained(job_id):
            whole: str = await asyncio.to_thread(self._client.get_job_logs, job_id)
        if len(whole) > shown:
            yield whole[shown:]

    @contextmanager
    def _explained(self, job_id: str = "") -> Iterator[None]:
        """Turn what the client raises into one line.

        Raises:
            ConfigurationError: whatever went wrong.
        """
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise ConfigurationError(
                f"the Ray head at {self.address} wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH "
                "(or RAY_AUTH_TOKEN) to what it was started with"
            ) from None
        except (ConnectionError, requests.exceptions.ConnectionError):
            raise ConfigurationError(
                f"no Ray head answers at {self.address}; `ray start --head` there wants the package ray[default]"
            ) from None
        except (RuntimeError, requests.exceptions.RequestException, ValueError) as error:
            text = " ".join(str(error).split())
            if job_id and "does not exist" in text:
                raise ConfigurationError(f"there is no job {job_id!r} at {self.address}") from None
            raise ConfigurationError(f"the Ray head at {self.address} refused: {text[:300]}") from None
