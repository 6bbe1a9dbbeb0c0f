"""The model card: what a registered model is, what it learned from, and how to use it."""

from collections.abc import Mapping

from fit_model.canvas import known_groups
from fit_model.flops import num_parameters
from fit_model.heads import ClassifyConfig
from fit_model.model import ModelConfig
from fit_model.pixels import GenerateConfig
from fit_model.vix import VixConfig
from pipeline.dataset import Dataset

FACES = {
    "encoder": "FIT encoder (Far-reaching Interleaved Transformers, arXiv:2305.12689)",
    "diffusion": "FIT diffusion decoder (Far-reaching Interleaved Transformers, arXiv:2305.12689)",
    "autoregressive": "FIT autoregressive decoder (Far-reaching Interleaved Transformers, "
    "arXiv:2305.12689)",
    "vix": "ViX, a plain vision transformer (Vision X-formers, arXiv:2107.02239)",
}


def purpose(model: ModelConfig) -> str:
    """What the model is for, its first words to be printed bold."""
    head = model.head
    if isinstance(head, GenerateConfig):
        asked = f"of {head.target}: {', '.join(head.classes)}" if head.classes else "of no class"
        span = f"{head.pixel_low:g} to {head.pixel_high:g}"
        return f"Makes** images {asked}; pixels {head.pixel_dtype}, {span}"
    if isinstance(head, ClassifyConfig):
        return f"Predicts** {head.target}: one of {', '.join(head.classes)}"
    return f"Predicts** numbers: {', '.join(head.targets)}"


def size_of(model: ModelConfig) -> str:
    """How large the images may be."""
    face, known = model.face, known_groups(model)
    if isinstance(face, VixConfig):
        return f"{face.grid_rows} x {face.grid_columns} groups an image, in no other grid"
    if known is not None:
        return f"{known} groups an image, no more and no fewer"
    if isinstance(model.head, GenerateConfig):
        rows, columns = model.head.grid_rows, model.head.grid_columns
        return f"{rows} x {columns} groups an image unless asked for another size"
    return "any number of groups an image"


def body_of(model: ModelConfig) -> str:
    """What lies between pixels and head."""
    face = model.face
    if isinstance(face, VixConfig):
        operators = ", ".join(dict.fromkeys(face.operators))
        return f"{face.depth} layers of width {face.width}, {face.heads} heads, {operators}"
    trunk = face.trunk
    return (
        f"layers {trunk.layers}, widths {trunk.width} and {trunk.latent_width},\n"
        f"  {trunk.latents_per_group} latents a group"
    )


def served(model: ModelConfig) -> str:
    """What it is given when MLflow serves it."""
    if isinstance(model.head, GenerateConfig):
        return "it takes rows of seeds and, if it knows classes, labels."
    given = "it takes the arrays that\n`jobs.model_signature.arrays_of` makes of a batch of groups"
    if isinstance(model.face, VixConfig):
        return f"{given}."
    return f"{given}, and the params\n`groups_a_chunk` and `offload` for images larger than memory."


def model_card(
    name: str,
    model: ModelConfig,
    dataset: Dataset,
    *,
    split: str,
    run_id: str,
    steps: int,
    metrics: Mapping[str, float],
    measured: str,
) -> str:
    """Markdown for the registry's page and for the folder that `models pull` gives."""
    pixels = model.input
    images = [image for image in dataset.images(split) if image.groups]
    sizes = sorted({(image.height_px, image.width_px) for image in images})
    shown = ", ".join([f"{height} x {width}" for height, width in sizes[:6]])
    shown += ", ..." if len(sizes) > 6 else ""
    parameters = num_parameters(model)
    figures = "\n".join(f"| {key} | {value:.4g} |" for key, value in sorted(metrics.items()))
    return f"""# {name}

{FACES[model.face.kind]},
{parameters:,} parameters.

- **{purpose(model)}
- **Images** of {pixels.bands} bands in groups of {pixels.group_side_px} px,
  patches of {model.face.patch_px} px; {size_of(model)}
- **Body** {body_of(model)}
- **Trained on** {len(images)} images ({shown} px), dataset digest
  `{dataset.info.digest}`
- **Run** `{run_id}`, {steps} steps

| {measured} | |
|---|---|
{figures}

Evaluation figures stand in the run and in the version's metrics.

    farreach models pull {name}@champion DIR
    python -c "from fit_model import weights; print(weights.load('DIR').config)"

or `mlflow.pyfunc.load_model("models:/{name}@champion")`; {served(model)}
"""
