"""The manifests parse, keep their ports to loopback and hold no secret."""

import re
from pathlib import Path

import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"


def test_every_published_port_is_bound_to_loopback():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert {port.split(":")[-1] for port in ports} == {"8265", "5000", "9000"}
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_depend_only_on_services_that_exist():
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert set(service.get("depends_on", [])) <= set(services)


def test_every_secret_comes_from_the_environment_file():
    text = (INFRA / "compose.yaml").read_text()
    example = (INFRA / "secrets.env.example").read_text()
    wanted = set(re.findall(r"\$\{([A-Z_]+)", text))
    assert wanted == set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))
    assert "secrets.env" in (INFRA / ".gitignore").read_text().split()
    assert not re.search(r"^(RAY_AUTH_TOKEN|\w+_PASSWORD)=.+", example, re.MULTILINE)


def test_the_ray_job_asks_for_tokens_and_runs_a_job_of_ours():
    job = yaml.safe_load((INFRA / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    module = re.search(r"-m (\S+)", job["spec"]["entrypoint"])
    assert module
    assert (INFRA.parent / (module[1].replace(".", "/") + ".py")).is_file()
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["image"].endswith("/farreach:0.1.0")


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "rayjob.yaml"])
def test_the_readme_says_of_every_file_that_it_was_not_run(name):
    text = (INFRA / "README.md").read_text()
    assert f"`{name}`" in text
    assert "None of these files has been run" in text
