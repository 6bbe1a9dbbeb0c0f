"""Training reads a dataset on S3 as it reads a local one, whatever happens to the endpoint."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from jobs.batches import Batch, BatchConfig, Feed
from jobs.targets import ClassifyTarget, head_config, read_labelled
from pipeline.cache import CacheConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.ranges import ReadingConfig

STEPS = 6  # two epochs of nine images


class Endpoint:
    """An S3 endpoint over real HTTP on loopback, which can go away and come back as it was."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()


@pytest.fixture
def endpoint(tiny_dataset, monkeypatch) -> Iterator[Endpoint]:
    """An endpoint that holds the small dataset, and what its clients need in the environment."""
    here = Endpoint()
    for name, value in {
        "AWS_ENDPOINT_URL": here.url,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.makedirs("training", exist_ok=True)
    files.put(f"{tiny_dataset}/", "training/set/", recursive=True)
    yield here
    files.rm("training", recursive=True)
    here.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def feed(dataset: Dataset) -> Feed:
    head = head_config(ClassifyTarget(label="kind"), dataset, split="train")
    labelled = read_labelled(dataset, head, split="train")
    numbers = torch.arange(len(labelled.records))
    return Feed(
        dataset,
        labelled=replace(labelled, values=numbers),
        head=head,
        config=BatchConfig(images_per_step=4),
    )


def same(one: Batch, other: Batch) -> bool:
    return (
        one.groups.pixels.to("cpu").equal(other.groups.pixels.to("cpu"))
        and one.targets.equal(other.targets)
        and one.weights.equal(other.weights)
    )


def test_an_endpoint_that_goes_away_in_the_middle_of_an_epoch_loses_nothing(endpoint, tiny_dataset):
    expected = list(feed(open_dataset(tiny_dataset)).stream(0, STEPS))
    source = feed(open_dataset("s3://training/set"))
    stream = source.stream(0, STEPS, ahead=0)
    found = [next(stream)]
    endpoint.stop()
    back = threading.Timer(1.5, endpoint.start)
    back.start()
    found += stream
    back.join()
    assert all(map(same, found, expected))
    assert len(found) == len(expected)
    assert not any(batch.damaged for batch in found)


def test_an_endpoint_that_stays_away_ends_it_with_one_line(endpoint):
    reading = ReadingConfig(patience_s=0.5)
    stream = feed(open_dataset("s3://training/set", reading=reading)).stream(0, STEPS, ahead=0)
    next(stream)
    endpoint.stop()
    says = r"^s3://training/set/shards/.*tried for 0\.5 s \(reading\.patience_s\)$"
    with pytest.raises(TimeoutError, match=says):
        list(stream)
    endpoint.start()


def test_with_a_cache_every_range_is_asked_for_once_by_all_workers_of_a_node(
    endpoint, tiny_dataset, tmp_path: Path, caplog
):
    expected = list(feed(open_dataset(tiny_dataset)).stream(0, STEPS))
    reading = ReadingConfig(cache=CacheConfig(folder=str(tmp_path), limit_gb=1))
    sources = [feed(open_dataset("s3://training/set", reading=reading)) for _ in range(2)]
    with caplog.at_level("INFO", logger="werkzeug"):
        for source in sources:
            assert all(map(same, source.stream(0, STEPS), expected))
        sent = [each.getMessage() for each in caplog.records]
    ranges = [line for line in sent if " 206 " in line]
    assert len(ranges) == len(sources[0].labelled.records)
