"""One protocol for image sources; rasterio and openslide behind it."""
