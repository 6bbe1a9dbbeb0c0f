"""Images shared by several workers: each holds some of the groups, latents meet over all."""
