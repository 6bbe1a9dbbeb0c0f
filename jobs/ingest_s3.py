"""An S3 endpoint on loopback: moto's, in a process of its own, with folders copied into it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import boto3

from jobs.errors import MachineFault
from jobs.small_world import free_port

BUCKET = "ingest"
START_S = 60.0
MISSING = "moto is not installed: pip install 'moto[server]'"
KEYS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""moto lets everybody in; clients want something to sign with all the same."""


def is_installed() -> bool:
    """Whether there can be an endpoint."""
    return find_spec("moto") is not None


@contextmanager
def endpoint(scratch: Path) -> Iterator[str]:
    """The URL of a server with an empty bucket; large objects lie in `scratch` while it runs."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1"]
    server = subprocess.Popen(  # noqa: S603 - our own command
        [*command, "-p", str(port)],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(url, server)
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.kill()
        server.wait()


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    """Until it answers."""
    deadline = time.monotonic() + START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            urlopen(f"{url}/moto-api/", timeout=1.0).close()  # noqa: S310 - our own URL
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise MachineFault("moto's S3 endpoint did not start on loopback")


def client(url: str) -> "boto3.client":
    """Of the endpoint."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )


def environment(url: str) -> dict[str, str]:
    """What each system's own client reads; nothing without an endpoint."""
    if not url:
        return {}
    return {
        **KEYS,
        "AWS_ENDPOINT_URL": url,
        "S3_ENDPOINT_URL": url,
    }


def upload(folder: Path, prefix: str, *, url: str) -> str:
    """Copy a folder into the bucket; where it lies."""
    store = client(url)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        key = f"{prefix}/{path.relative_to(folder).as_posix()}"
        store.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"
