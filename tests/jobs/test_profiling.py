"""A profile holds the steps that were asked for, in files that other programs read."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from jobs.profiling import ProfileConfig, Profiler, log_profile, profile_files, require_profile

CPU = torch.device("cpu")


def steps(folder: Path, config: ProfileConfig | None, *, rank: int = 0, first: int = 1) -> None:
    """Six steps, each with one product of matrices."""
    profiler = Profiler(config, run=str(folder), rank=rank, device=CPU)
    for step in range(first, 7):
        with profiler.around(step):
            torch.ones(50, 50) @ torch.ones(50, 50)


def products(folder: Path, rank: int = 0) -> int:
    """How many products of matrices the trace holds."""
    (file,) = (folder / "profile").glob(f"*/rank-{rank}.trace.json.gz")
    trace = json.loads(gzip.decompress(file.read_bytes()))
    return sum(event.get("name") == "aten::mm" for event in trace["traceEvents"])


def test_a_trace_holds_the_steps_that_were_asked_for_and_no_others(tmp_path):
    steps(tmp_path, ProfileConfig(first_step=2, last_step=4))
    assert products(tmp_path) == 3
    folder = "profile/steps-0000002-0000004"
    files = [f"{folder}/rank-0.operations.txt", f"{folder}/rank-0.trace.json.gz"]
    assert profile_files(str(tmp_path)) == files
    logged = {}
    log_profile(str(tmp_path), lambda path, of: logged.update({f"{of}/{path.name}": path.exists()}))
    assert logged == dict.fromkeys(files, True)


def test_a_training_that_goes_on_watches_what_is_left(tmp_path):
    steps(tmp_path, ProfileConfig(first_step=2, last_step=4), first=4)
    assert products(tmp_path) == 1


def test_the_table_names_the_costliest_operations(tmp_path):
    steps(tmp_path, ProfileConfig(first_step=1, last_step=1, products=("operations",)))
    (file,) = profile_files(str(tmp_path))
    text = (tmp_path / file).read_text()
    assert "aten::mm" in text
    assert "by self_cpu_time_total" in text
    assert "by self_cpu_memory_usage" in text


def test_only_the_workers_that_were_named_write(tmp_path):
    config = ProfileConfig(first_step=1, last_step=2, ranks=(1,))
    steps(tmp_path, config, rank=0)
    assert profile_files(str(tmp_path)) == []
    steps(tmp_path, config, rank=1)
    assert products(tmp_path, rank=1) == 2
    steps(tmp_path / "none", None)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"first_step": 0}, "profile.first_step 0 and profile.last_step 13: steps count from 1"),
        ({"last_step": 10}, "the last one does not come before the first"),
        ({"last_step": 31}, "more than 20 steps"),
        ({"ranks": ()}, "need one entry each"),
        ({"products": ("traces",)}, "profile.products is 'traces': choose one of trace, oper"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        ProfileConfig(**change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"last_step": 12}, "profile.last_step 12: training has 11 steps"),
        ({"ranks": (0, 2)}, r"profile.ranks \[0, 2\]: 2 workers have ranks 0 to 1"),
        ({"products": ("memory",)}, "'memory' needs workers.device gpu"),
    ],
)
def test_what_a_training_does_not_have_is_refused(change, says):
    config = ProfileConfig(**({"first_step": 11, "last_step": 11} | change))
    with pytest.raises(ValueError, match=says):
        require_profile(config, total_steps=11, num_workers=2, device="cpu")
