"""Send a job to a running Ray cluster, follow its log, and end with its exit status.

Example  farreach submit train train.yaml optimizer.lr=1e-4 --address http://127.0.0.1:8265
Reads    CONFIG.yaml, which is all that is uploaded: paths in it are the cluster's, so write
         absolute paths that every node has, or URIs (s3://bucket/prefix)
Needs    farreach installed on the cluster; the cluster's token in RAY_AUTH_TOKEN,
         RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Secrets of stores are the cluster's own.
Again    Ctrl-C leaves the job running and says how to stop it
"""

import asyncio
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cluster import SUBMITTED, token_path
from jobs.errors import MachineFault, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOBS = ("preprocess", "inspect", "verify", "train", "tune", "evaluate", "generate", "doctor")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
UPLOADED = "config.yaml"
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
POLL_S = 0.5
INTERRUPTED = 130
PATIENT_STOP = {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
"""Of `ray job stop`: a training saves first, and Ray would kill it after 3 s."""


def main(name: str, config: Path | None, overrides: list[str], *, address: str | None) -> None:
    """Run jobs.NAME on the cluster; ends this process with the job's exit status."""
    if name not in JOBS:
        raise UserError(f"no job '{name}'; there are: {', '.join(JOBS)}")
    if config is not None and not config.is_file():
        raise UserError(f"{config}: no such file")
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if not address.startswith(("http://", "https://")):
        raise UserError(f"address '{address}' must open with http://, as {DEFAULT_ADDRESS}")
    logging.disable(logging.INFO)  # Ray's client tells of each upload and of each closed socket
    try:
        raise SystemExit(_run(_client(address), address, name, config, overrides))
    finally:
        logging.disable(logging.NOTSET)


def _run(
    client: "JobSubmissionClient", address: str, name: str, config: Path | None, rest: list[str]
) -> int:
    job_id = _submit(client, name=name, config=config, overrides=rest)
    try:
        print(f"{name} runs as {job_id} at {address}", file=sys.stderr)
        asyncio.run(_follow(client, job_id))
        return _wait(client, job_id)
    except KeyboardInterrupt:
        print(
            f"\n{job_id} keeps running. Follow it:  ray job logs --address {address} -f {job_id}\n"
            f"Stop it:    ray job stop --address {address} {job_id}",
            file=sys.stderr,
        )
        return INTERRUPTED


def _client(address: str) -> "JobSubmissionClient":
    """A client that shows its token, if there is one; a refusal is one line."""
    known = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if known or token_path().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        client.get_version()
        client.list_jobs()
    except AuthenticationError as error:
        raise UserError(
            f"the Ray cluster at {address} refuses the token: put the cluster's into "
            f"RAY_AUTH_TOKEN or {token_path()}"
        ) from error
    except (ConnectionError, OSError) as error:
        raise MachineFault(
            f"no Ray job server answers at {address}: start a cluster "
            "(ray start --head), or give its --address"
        ) from error
    return client


def _submit(
    client: "JobSubmissionClient", *, name: str, config: Path | None, overrides: list[str]
) -> str:
    command = ["python", "-m", f"jobs.{name}"]
    with tempfile.TemporaryDirectory() as folder:
        if config is not None:
            shutil.copy(config, Path(folder) / UPLOADED)
            command.append(UPLOADED)
        return client.submit_job(
            entrypoint=shlex.join([*command, *overrides]),
            runtime_env={"working_dir": folder, "env_vars": {SUBMITTED: "1", **PATIENT_STOP}},
            metadata={"farreach_job": name},
        )


async def _follow(client: "JobSubmissionClient", job_id: str) -> None:
    """Print the job's log as it grows, until the job ends or the line to it breaks."""
    from aiohttp import ClientError

    try:
        async for lines in client.tail_job_logs(job_id):
            print(lines, end="", flush=True)
    except (RuntimeError, ClientError) as error:
        print(f"the log broke off ({error}); waiting for the job to end", file=sys.stderr)


def _wait(client: "JobSubmissionClient", job_id: str) -> int:
    """The exit status of the job, which ends a moment after its log."""
    while True:
        details: Any = client.get_job_info(job_id)
        if details.status in ENDED:
            break
        time.sleep(POLL_S)
    if details.status == "SUCCEEDED":
        return 0
    status = details.driver_exit_code
    if status is None:
        found = re.search(r"exit code (\d+)", details.message or "")
        status = int(found[1]) if found else 1
    if details.message and not details.message.startswith("Job entrypoint command failed"):
        print(details.message.strip().splitlines()[0], file=sys.stderr)
    print(f"{job_id} {details.status.lower()} with exit status {status}", file=sys.stderr)
    return status or 1


if __name__ == "__main__":
    sys.exit("type: farreach submit NAME CONFIG.yaml [key=value ...] [--address URL]")
