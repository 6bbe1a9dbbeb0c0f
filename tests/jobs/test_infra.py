"""The manifests parse, keep their ports to loopback and hold no secret."""

import re
import tomllib
from pathlib import Path

import pytest
import sqlalchemy
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


def test_the_image_holds_the_driver_that_the_database_address_asks_for():
    command = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["mlflow"]["command"]
    command = re.sub(r"\$\{[^}]*\}", "secret", command)
    address = re.search(r"--backend-store-uri (\S+)", command)
    assert address
    named = sqlalchemy.make_url(address[1])
    driver = named.get_dialect().driver  # the address leaves it to SQLAlchemy's default
    install = re.search(r"^RUN pip install.*", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert install
    assert driver in {re.split(r"[\[<>=]", word.strip('"'))[0] for word in install[0].split()}


def test_what_mlflow_needs_for_artifacts_on_s3_is_installed_and_not_for_tests_alone():
    project = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())["project"]
    assert "boto3" in project["dependencies"]  # imported by MLflow only when a bucket is used


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "rayjob.yaml"])
def test_what_the_manifests_name_in_this_repository_is_there(name):
    text = (INFRA / name).read_text()
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    named = [path for line in copied for path in line.split()]
    named += re.findall(r"\b(?:infra|jobs)/[\w./]+\.(?:yaml|py|example)", text)
    named += re.findall(r"dockerfile: ([^\s}]+)", text)
    assert named
    assert [path for path in named if not (INFRA.parent / path).exists()] == []
