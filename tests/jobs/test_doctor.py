"""The doctor names what is wrong, and only a failure changes how it ends."""

import pytest

from jobs import doctor
from jobs.doctor import Finding, examine


def test_a_check_that_breaks_is_a_finding_of_one_line():
    def broken() -> Finding:
        raise ImportError("No module named 'openslide'\nand more")

    assert examine(broken) == Finding(
        outcome="fail",
        seen="No module named 'openslide'",
        remedy="pip install -c constraints.txt -e .",
    )


def test_warnings_do_not_fail_and_failures_do(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", {"disk": lambda: doctor.warn("full", "free some")})
    doctor.main()
    assert "free some" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", {"x": lambda: Finding(outcome="fail", seen="no x")})
    with pytest.raises(SystemExit) as caught:
        doctor.main()
    assert caught.value.code == 1


@pytest.mark.parametrize(
    ("name", "value", "check", "outcome"),
    [
        ("OMP_NUM_THREADS", "9999", doctor.cores, "warn"),
        ("RAY_AUTH_MODE", "disabled", doctor.ray_token, "warn"),
        ("RAY_ADDRESS", "127.0.0.1:9", doctor.ray, "fail"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", doctor.mlflow, "fail"),
        ("PATH", "/nowhere", doctor.compiler, "warn"),
    ],
)
def test_a_setting_of_the_environment_that_harms_is_found(monkeypatch, name, value, check, outcome):
    monkeypatch.setenv(name, value)
    found = examine(check)
    assert found.outcome == outcome
    assert value in found.seen or found.remedy


def test_a_token_that_others_can_read_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("x" * 64)
    path.chmod(0o644)
    assert examine(doctor.ray_token).remedy == f"chmod 600 {path}"
    path.chmod(0o600)
    assert examine(doctor.ray_token).outcome == "ok"
