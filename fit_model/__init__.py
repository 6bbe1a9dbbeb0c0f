"""FIT and its relatives in plain PyTorch: tensors only, nothing of Ray, Arrow or MLflow."""
