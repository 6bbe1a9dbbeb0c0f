"""The entry points of Farreach and what ties images, models, Ray and MLflow together."""
