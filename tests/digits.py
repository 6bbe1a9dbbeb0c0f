"""Scikit-learn's 1,797 real handwritten digits: a dataset, a bound and a judge for generators.

    python -m tests.digits make FOLDER      8 x 8 px images with their raw values 0 to 16
    python -m tests.digits marginal         bits a pixel when every pixel stands for itself
    python -m tests.digits judge SAMPLES    how many samples show the digit they were asked for

Every fifth digit is held out: split "test", never seen by the marginal model or the judge.
SAMPLES holds images/NAME.png, 8-bit grey with raw values, and labels.csv with image (NAME), label.
"""

import argparse
import csv
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

LEVELS = 17
CLASSES = tuple(f"digit_{kind}" for kind in range(10))
SMOOTHING = 0.1
"""Added to every count; of 0.01 to 2 the one with the fewest bits on held-out digits, within 1e-4:
a generator is compared with the marginal model at its best."""
REQUIRED_ACCURACY = 0.95


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Pixels uint8 [count, 8, 8] of raw values, and which digit each image shows."""

    pixels: np.ndarray
    kinds: np.ndarray


def real_digits() -> Digits:
    digits = load_digits()
    return Digits(pixels=digits.images.astype(np.uint8), kinds=digits.target)


def is_heldout(count: int) -> np.ndarray:
    return np.arange(count) % 5 == 0


def part(split: str) -> Digits:
    digits = real_digits()
    chosen = is_heldout(len(digits.kinds)) == (split == "test")
    return Digits(pixels=digits.pixels[chosen], kinds=digits.kinds[chosen])


def make(folder: Path) -> None:
    """FOLDER/images/0000.png ... and FOLDER/labels.csv with the columns image, label, split."""
    digits = real_digits()
    heldout = is_heldout(len(digits.kinds))
    rows = []
    (folder / "images").mkdir(parents=True)
    for number, (pixels, kind) in enumerate(zip(digits.pixels, digits.kinds, strict=True)):
        name = f"{number:04d}"
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        rows.append((name, CLASSES[kind], "test" if heldout[number] else "train"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "split"), *rows])


def marginal_bits(*, smoothing: float = SMOOTHING) -> float:
    """Mean -log2 p over the pixels of held-out digits, p from the counts of training digits.

    p[place, level] = (count[place, level] + smoothing) / (images + LEVELS smoothing)
    """
    train, test = part("train").pixels.reshape(-1, 64), part("test").pixels.reshape(-1, 64)
    counts = (train[:, :, None] == np.arange(LEVELS)).sum(0) + smoothing
    chances = counts / counts.sum(1, keepdims=True)
    return float(-np.log2(chances[np.arange(64), test]).mean())


@cache
def judge() -> SVC:
    """A support vector machine on raw pixels, with the settings of scikit-learn's own example."""
    train = part("train")
    return SVC(gamma=0.001).fit(train.pixels.reshape(-1, 64), train.kinds)


def heldout_accuracy() -> float:
    test = part("test")
    return float(judge().score(test.pixels.reshape(-1, 64), test.kinds))


def read_samples(folder: Path) -> Digits:
    """Samples and the digit each was asked for; SystemExit names what is not as it should be."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"{folder}/labels.csv names no image")
    pixels = []
    for row in rows:
        if row["label"] not in CLASSES:
            sys.exit(f"label {row['label']!r} of image {row['image']!r} is not among {CLASSES}")
        image = np.asarray(Image.open(folder / "images" / f"{row['image']}.png"))
        if image.shape != (8, 8) or image.dtype != np.uint8 or image.max() >= LEVELS:
            sys.exit(f"image {row['image']!r} is not 8 x 8 px of 8-bit grey from 0 to 16")
        pixels.append(image)
    kinds = np.array([CLASSES.index(row["label"]) for row in rows])
    return Digits(pixels=np.stack(pixels), kinds=kinds)


def recognised(samples: Digits) -> np.ndarray:
    """Which samples the judge takes for the digit they were asked for."""
    return judge().predict(samples.pixels.reshape(-1, 64)) == samples.kinds


def tell_samples(folder: Path) -> None:
    accuracy = heldout_accuracy()
    print(f"the judge reads {accuracy:.2%} of {len(part('test').kinds)} held-out real digits right")
    if accuracy < REQUIRED_ACCURACY:
        sys.exit(f"a judge that reads less than {REQUIRED_ACCURACY:.0%} right is none")
    samples = read_samples(folder)
    right = recognised(samples)
    for kind, name in enumerate(CLASSES):
        asked = samples.kinds == kind
        if asked.any():
            print(f"{name}  {right[asked].mean():6.1%} of {asked.sum()}")
    print(f"recognised as the asked digit: {right.mean():.1%} of {len(right)} samples")


def tell_marginal() -> None:
    print(f"marginal model on held-out digits: {marginal_bits():.4f} bits a pixel")
    print(f"(counts of training digits + {SMOOTHING}; + 1: {marginal_bits(smoothing=1.0):.4f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("make", help="write the digits").add_argument("folder", type=Path)
    marginal = commands.add_parser("marginal", help="bits a pixel of the marginal model")
    marginal.add_argument("folder", type=Path, nargs="?", help="not needed")
    commands.add_parser("judge", help="judge samples").add_argument("folder", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "make":
        make(chosen.folder)
    elif chosen.command == "marginal":
        tell_marginal()
    else:
        tell_samples(chosen.folder)


if __name__ == "__main__":
    main()
