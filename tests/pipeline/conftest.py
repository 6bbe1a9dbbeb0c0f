"""An S3 endpoint over real HTTP on loopback, and a dataset that several tests read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from hypothesis import settings
from moto.server import ThreadedMotoServer

from pipeline.config import GroupingConfig, PreprocessConfig
from pipeline.dataset import Dataset, open_dataset
from pipeline.flow import preprocess
from tests.pipeline.scenes import in_process, noise, write_raster

# A busy machine is slow now and then; that is no counterexample.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[s3fs.S3FileSystem]:
    """A client of an endpoint with the bucket `scans`; what it needs is in the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.makedirs("scans", exist_ok=True)
    yield files
    files.rm("scans", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small images of one format, of awkward and different sizes."""
    folder = tmp_path_factory.mktemp("scans")
    for number, (height, width) in enumerate([(100, 130), (64, 64), (33, 257)]):
        pixels = noise(height, width, 3, seed=number)
        write_raster(folder / f"part{number % 2}" / f"scan{number}.tif", pixels)
    return folder


@pytest.fixture(scope="session")
def dataset(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The three scans in groups of 32 px."""
    output = tmp_path_factory.mktemp("stored") / "dataset"
    grouping = GroupingConfig(group_side_px=32)
    config = PreprocessConfig(sources=str(scans), output=str(output), grouping=grouping)
    preprocess(config, run_stage=in_process)
    return open_dataset(str(output))
