"""Two labelled 6400 x 6400 px BigTIFFs to measure with: `python -m tests.large_image FOLDER`."""

import sys
from pathlib import Path

from tests.pipeline.scenes import write_large_scene


def main(folder: Path, *, side_px: int = 6400) -> None:
    """FOLDER/images/{north,south}.tif and FOLDER/labels.csv; both are in the training split."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = ["image,label,split"]
    for name in ("north", "south"):
        write_large_scene(images / f"{name}.tif", side_px=side_px)
        rows.append(f"{name},{name},train")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
