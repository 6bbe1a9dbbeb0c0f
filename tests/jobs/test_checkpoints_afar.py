"""Checkpoints on S3: the same, and an endpoint that is away is waited for, but not for ever."""

import os
import threading
from typing import Any

import s3fs
from moto.server import ThreadedMotoServer

from jobs.manifests import Progress
from jobs.small_world import in_small_world
from tests.jobs.small_engines import ADAMW, Variant, checkpoints, made, train, weights

VARIANT = Variant(ADAMW, 2)


def start(port: int) -> ThreadedMotoServer:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    return server


def on_s3(task: None, rank: int) -> dict[str, Any]:
    """Three saves: one as ever, one while the endpoint is away, one until after it is back."""
    server = start(0)
    _, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.makedirs("runs", exist_ok=True)
    engine = made(VARIANT, seed=1)
    train(engine, range(1))
    folder = "s3://runs/tiny/checkpoints"
    hand, told = checkpoints(folder, VARIANT, patience_s=60.0)
    impatient, told_soon = checkpoints(folder, VARIANT, patience_s=0.5)
    hand.save(engine, Progress(step=1), wait=True)
    server.stop()
    impatient.save(engine, Progress(step=2), wait=True)
    timer = threading.Timer(1.0, start, args=(port,))
    timer.start()
    hand.save(engine, Progress(step=3), wait=True)
    again = made(VARIANT, seed=2)
    progress = hand.restore(again)
    return {
        "files": sorted(path.split("/")[-2] for path in files.find("runs") if "manifest" in path),
        "step": progress.step,
        "same": all(
            (weights(again, which)[name] == each).all()
            for which in ("latest", "averaged")
            for name, each in weights(engine, which).items()
        ),
        "told": told,
        "told soon": told_soon,
    }


def test_an_endpoint_that_is_away_costs_a_checkpoint_at_most():
    found = in_small_world(on_s3, None, num_workers=1, threads=1)
    assert found["files"] == ["step-0000001", "step-0000003"]
    assert found["step"] == 3
    assert found["same"]
    assert found["told"] == []
    (event,) = found["told soon"]
    assert (event.kind, event.step) == ("checkpoint failed", 2)
    assert "tried for 0.5 s (record.patience_s)" in event.text
