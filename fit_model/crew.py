"""Who holds the groups of an image: one worker alone, or several together."""

from fit_model.layout import ImageLayout
from fit_model.shapes import PerGroup


class Crew:
    """The workers that hold a batch's groups between them; here one that holds them all.

    What groups do alone they do wherever they are. All else goes through the layout: the global
    layers, sums over an image, and what lies before a group.
    """

    def layout(self, image: PerGroup, *, num_images: int, latents_per_group: int) -> ImageLayout:
        """How the groups that are here, of the images `image`, line up with all others."""
        return ImageLayout.of(image, num_images=num_images, latents_per_group=latents_per_group)


ALONE = Crew()
