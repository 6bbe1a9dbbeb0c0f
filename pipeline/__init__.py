"""Huge images to patch groups in Arrow; knows images and tables, nothing of tensors."""
