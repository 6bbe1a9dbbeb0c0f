"""The alphabet of every shape in `fit_model`, and the tensors that travel between its files.

    b  image of a batch                        d  width of a data token
    g  group, one flat list over all images    e  width of a latent
    n  data token (patch) of a group           h  attention head
    m  latent of a group                       s  latent of an image: its groups' latents in a row
    c  channels of a patch: patch_px^2 bands   k  what a head gives for an image
    a  token of an image's context             v  level of a sub-pixel
    z  what a group adds to its image

Inside an attention operator b counts whatever runs in parallel (groups in local layers, images in
global ones), q and k count queries and keys, and d and e are the widths of one head.
"""

from jaxtyping import Bool, Float, Int64
from torch import Tensor

Patches = Float[Tensor, "g n c"]
DataTokens = Float[Tensor, "g n d"]
Latents = Float[Tensor, "g m e"]
Context = Float[Tensor, "b a e"]
"""What an image is asked to be: a token of the noise level, one of the class."""
ValidTokens = Bool[Tensor, "g n"]
"""True for a token that shows at least one pixel of the image; None stands for all of them."""
PerGroup = Int64[Tensor, " g"]
PerImage = Int64[Tensor, " b"]
Outputs = Float[Tensor, "b k"]
