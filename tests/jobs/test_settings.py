"""What a settings file may say, and the one line it gets when it says something else."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from jobs.errors import UserError
from jobs.settings import describe, load, to_dict, to_flat_dict


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Classify:
    kind: Literal["classify"] = "classify"
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Regress:
    kind: Literal["regress"] = "regress"
    targets: tuple[str, ...]
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str


@dataclass(frozen=True, kw_only=True)
class Train:
    dataset: str
    head: Classify | Regress
    optimizer: Optimizer = Optimizer()
    steps: int = 10
    precision: Literal["bf16", "fp32"] = "fp32"
    labels: str | None = None
    sources: str | list[str] = "here"
    output: Path = Path("out")
    shuffle: bool = True
    stages: tuple[Stage, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} must be at least 1")


WHOLE = "dataset: d\nhead: {kind: classify, classes: [cat, dog]}\n"


def read(tmp_path: Path, text: str, *overrides: str) -> Train:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return load(Train, path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_values_become_what_the_annotations_say(tmp_path):
    text = WHOLE + "stages: [{name: a}, {name: b}]\nsources: [x, y]\nlimits: {gb: 1e-2}"
    config = read(tmp_path, text, "optimizer.betas=[0.8, 1e-1]", "output=/data/x", "steps=3")
    assert config == Train(
        dataset="d",
        head=Classify(classes=("cat", "dog")),
        optimizer=Optimizer(betas=(0.8, 0.1)),
        steps=3,
        sources=["x", "y"],
        output=Path("/data/x"),
        stages=(Stage(name="a"), Stage(name="b")),
        limits={"gb": 0.01},
    )


@pytest.mark.parametrize("text", ["3e-4", "0.0003", "3.0e-4", "+3E-4"])
def test_every_spelling_of_a_number_is_a_float(tmp_path, text):
    assert read(tmp_path, WHOLE, f"optimizer.lr={text}").optimizer.lr == 3e-4


def test_a_whole_number_fills_a_float(tmp_path):
    lr = read(tmp_path, WHOLE + "optimizer: {lr: 1}").optimizer.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_the_kind_chooses_among_dataclasses(tmp_path):
    config = read(tmp_path, "dataset: d\nhead: {kind: regress, targets: [age], scale: 2e0}")
    assert config.head == Regress(targets=("age",), scale=2.0)


def test_what_to_dict_writes_load_reads_back(tmp_path):
    config = read(tmp_path, WHOLE, "optimizer.lr=3e-4", "stages=[{name: a}]")
    import yaml

    assert read(tmp_path, yaml.safe_dump(to_dict(config))) == config


def test_flat_dict_has_dotted_keys_and_scalars(tmp_path):
    flat = to_flat_dict(read(tmp_path, WHOLE))
    assert flat["optimizer.lr"] == 1e-3
    assert flat["head.classes"] == '["cat", "dog"]'
    assert flat["output"] == "out"
    assert not any(isinstance(value, dict | list) for value in flat.values())


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            WHOLE + "optimizer: {lrr: 1}",
            [],
            "train.yaml: no setting 'optimizer.lrr'; did you mean 'optimizer.lr'?",
        ),
        (
            WHOLE,
            ["optimizer.lrr=1"],
            "train.yaml: no setting 'optimizer.lrr'; did you mean 'optimizer.lr'?",
        ),
        (WHOLE + "lr: 1", [], "train.yaml: no setting 'lr'; did you mean 'optimizer.lr'?"),
        (WHOLE, ["head.scale=2"], "train.yaml: no setting 'head.scale'; there are: kind, classes"),
        ("head: {kind: classify, classes: [a]}", [], "train.yaml: setting 'dataset' is missing"),
        ("", [], "train.yaml: settings 'dataset', 'head' are missing"),
        (
            "dataset: d\nhead: {classes: [a]}",
            [],
            "train.yaml: setting 'head.kind' is missing; choose one of: classify, regress",
        ),
        (
            "dataset: d\nhead: {kind: segment}",
            [],
            "train.yaml: 'head.kind' = 'segment'; choose one of: classify, regress",
        ),
        (WHOLE, ["steps=0"], "train.yaml: steps 0 must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(tmp_path, text, overrides, message):
    assert refusal(tmp_path, text, *overrides) == message


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("dataset=on", "'dataset' = True: it should be a valid string; write it in quotes"),
        ("dataset=8", "'dataset' = 8: it should be a valid string; write it in quotes"),
        (
            "head.classes=[a, 3]",
            "it should be a valid string; write it in quotes, on the command "
            'line as head.classes=\'["a", "3"]\'',
        ),
        ("sources=[7]", "sources='[\"7\"]'"),
        ("labels=7", "labels='\"7\"'"),
        ("steps=yes", "'steps' = True: it should be a valid integer"),
        ("steps=2.5", "'steps' = 2.5: it should be a valid integer"),
        ("steps=many", "'steps' = 'many'"),
        ("shuffle=1", "'shuffle' = 1: it should be a valid boolean"),
        ("precision=fp16", "'precision' = 'fp16': it should be 'bf16' or 'fp32'"),
        ("optimizer=3", "'optimizer' = 3 must be a mapping of settings"),
        ("head=null", "'head'"),
        ("optimizer.betas=[1]", "'optimizer.betas' = [1]"),
        ("optimizer.betas=[x, 1]", "'optimizer.betas' = ['x', 1]: it should be a valid number"),
        ("steps", "override 'steps' is not of the form key=value"),
        ("steps=[1", "steps=[1: line 1"),
        ("steps.more=1", "'steps'"),
    ],
)
def test_a_value_of_another_type_is_refused_not_converted(tmp_path, override, fragment):
    assert fragment in refusal(tmp_path, WHOLE, override)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    assert "key 'steps' stands twice" in refusal(tmp_path, WHOLE + "steps: 1\nsteps: 2")


def test_a_file_that_is_no_yaml_is_refused_with_the_line(tmp_path):
    assert refusal(tmp_path, "dataset: [d\nhead: x").startswith("train.yaml: line 2")


def test_a_file_of_a_list_is_refused(tmp_path):
    assert "must hold settings" in refusal(tmp_path, "- a")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        load(Train, tmp_path / "absent.yaml", [])


def test_settings_come_from_the_command_line_alone():
    assert load(Stage, None, ["name=x"]) == Stage(name="x")
    with pytest.raises(UserError, match=r"command line: setting 'name' is missing"):
        load(Stage, None)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    side_px: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Job:
    tiling: Tiling
    names: tuple[str, ...] = ("a",)


def test_what_is_described_is_what_can_be_set_with_its_default():
    described = {"tiling.side_px": "required", "tiling.share": "0.5", "names": '["a"]'}
    assert dict(describe(Job)) == described
    job = load(Job, None, ["tiling.side_px=3", *(f"{k}={described[k]}" for k in ("names",))])
    assert job == Job(tiling=Tiling(side_px=3))


@dataclass(frozen=True, kw_only=True)
class Optional:
    tiling: Tiling | None = None


def test_settings_that_may_be_left_out_together_are_described_as_none():
    described = dict(describe(Optional))
    assert described == {
        "tiling": "null", "tiling.side_px": "required", "tiling.share": "0.5"
    }  # fmt: skip
    assert load(Optional, None) == Optional()


def test_a_missing_setting_and_a_misplaced_one_are_named_in_full():
    with pytest.raises(UserError, match=r"setting 'tiling\.side_px' is missing"):
        load(Job, None)
    with pytest.raises(UserError, match=r"did you mean 'tiling\.share'"):
        load(Job, None, ["share=1"])
