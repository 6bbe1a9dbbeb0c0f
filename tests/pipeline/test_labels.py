"""Labels fit the images exactly, and splits do not depend on what else is there."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils import validation
from pyarrow import parquet

from pipeline.config import SplitConfig
from pipeline.labels import Labels, read_labels, split_of

IMAGES = ["a", "b", "007"]


def read(tmp_path: Path, text: str) -> Labels:
    (tmp_path / "labels.csv").write_text(text)
    return read_labels(str(tmp_path / "labels.csv"), images=IMAGES, splits=SplitConfig())


def test_text_becomes_classes_and_numbers_stay_numbers(tmp_path: Path) -> None:
    labels = read(tmp_path, "image,kind,age,sick\nb,oak,3,true\na,ash,2.5,false\n007,oak,,true\n")
    assert labels.columns == {"kind": "class", "age": "number", "sick": "class"}
    assert labels.values["a"] == {"kind": "ash", "age": 2.5, "sick": "false"}
    assert labels.values["007"]["age"] is None
    assert labels.classes(IMAGES) == {"kind": ["ash", "oak"], "sick": ["false", "true"]}


def test_parquet_labels_read_like_csv_ones(tmp_path: Path) -> None:
    kinds = pa.array(["oak", "ash", "oak"]).dictionary_encode()
    table = pa.table({"image": IMAGES, "kind": kinds, "age": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "l.parquet")
    labels = read_labels(str(tmp_path / "l.parquet"), images=IMAGES, splits=SplitConfig())
    assert labels.values["b"] == {"kind": "ash", "age": 2.0}


def test_numbers_named_as_classes_become_their_text(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,sick,age,code\na,1,3,01\nb,0,4,1\n007,,5,01\n")
    table = pa.table({"image": IMAGES, "sick": [1.0, 0.0, None], "age": [3, 4, 5], "code": [1] * 3})
    parquet.write_table(table, tmp_path / "labels.parquet")
    for suffix, codes in {"csv": ["01", "1"], "parquet": ["1"]}.items():
        uri = str(tmp_path / f"labels.{suffix}")
        given = {"images": IMAGES, "splits": SplitConfig()}
        labels = read_labels(uri, class_labels=("sick", "code"), **given)
        assert labels.columns == {"sick": "class", "age": "number", "code": "class"}
        assert labels.values["a"]["sick"] == "1"
        assert labels.values["007"]["sick"] is None
        assert labels.classes(IMAGES) == {"sick": ["0", "1"], "code": codes}
        with pytest.raises(ValueError, match=r"names 'sik', no label column; it has sick, age"):
            read_labels(uri, class_labels=("sik",), **given)


def test_a_missing_number_is_no_class(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,sick\na,1\nb,nan\n007,0\n")
    with pytest.raises(ValueError, match=r"'sick' of image 'b' is nan; leave it empty"):
        read_labels(
            str(tmp_path / "labels.csv"),
            images=IMAGES,
            splits=SplitConfig(),
            class_labels=("sick",),
        )


@pytest.mark.parametrize("name", ["size (mm)", "a,b", "/a", "a//b", "../a", ".", "a/"])
def test_a_name_that_mlflow_cannot_hold_is_refused_with_what_is_allowed(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(MlflowException):
        validation._validate_metric_name(name)
    with pytest.raises(ValueError, match=r"cannot be a metric's name .* letters, digits") as caught:
        read(tmp_path, f'image,"{name}"\na,1\nb,2\n007,3\n')
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_mlflow_can_hold_are_kept(tmp_path: Path) -> None:
    names = ["size µm", "a/b", "T-stage: 2.1", "größe_1"]
    labels = read(tmp_path, f"image,{','.join(names)}\na,1,1,1,1\nb,2,2,2,2\n007,3,3,3,3\n")
    assert list(labels.columns) == names
    for name in names:
        validation._validate_metric_name(f"{name}/mae")


def test_a_split_column_is_kept(tmp_path: Path) -> None:
    labels = read(tmp_path, "image,kind,split\na,x,test\nb,y,train\n007,x,validation\n")
    assert labels.split == {"a": "test", "b": "train", "007": "validation"}
    assert labels.columns == {"kind": "class"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,k\na,x\nb,y\n007,x\nc,x\n", "label for the unknown image 'c'"),
        ("image,k\na,x\nb,y\n07,x\n", "unknown image '07'; did you mean '007'"),
        ("image,k\na,x\nb,y\n", "image '007' has no label; add a row"),
        ("image,k\na,x\n", r"image '007' \(and 1 more\) has no label"),
        ("image,k\na,x\nb,y\n007,x\na,y\n", "two labels for image 'a'"),
        ("image,k\na,x\nb,\n007,x\n", "image 'b' has no label"),
        ("image,k\na,1\nb,nan\n007,2\n", "'k' of image 'b' is nan"),
        ("image,k,split\na,x,train\nb,y,dev\n007,x,test\n", "split 'dev' of image 'b' is none of"),
        ("image,k,split\na,x,train\nb,y,\n007,x,test\n", "split None of image 'b'"),
        ("image\na\nb\n007\n", "no label column"),
        ("slide,k\na,x\n", "no column 'image'; it has slide, k"),
        (f"image,{'x' * 201}\na,1\nb,1\n007,2\n", "x' cannot be a metric's name"),
        ("image,crs\na,x\nb,x\n007,x\n", "a label cannot be called 'crs'"),
        ("image,k\na,2026-01-02\nb,2026-01-02\n007,2026-01-02\n", "'k' is date32"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        read(tmp_path, text)
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(min_size=1, max_size=20), st.integers(0, 9))
def test_a_split_depends_on_the_id_and_the_seed_alone(image: str, seed: int) -> None:
    splits = SplitConfig(seed=seed)
    one = read_labels(None, images=[image], splits=splits).split[image]
    other = read_labels(None, images=[image, "another", "third"], splits=splits).split[image]
    assert one == other == split_of(image, splits=splits)


def test_splits_have_the_asked_shares() -> None:
    splits = SplitConfig(train=0.6, validation=0.3, test=0.1)
    got = [split_of(f"scan{n}", splits=splits) for n in range(4000)]
    for name in ("train", "validation", "test"):
        assert abs(got.count(name) / 4000 - getattr(splits, name)) < 0.03
    everything = SplitConfig(train=1.0, validation=0.0, test=0.0)
    assert {split_of(f"scan{n}", splits=everything) for n in range(200)} == {"train"}
