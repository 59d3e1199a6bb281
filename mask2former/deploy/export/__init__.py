"""Trained models in formats that run elsewhere, with their post-processing, proven against the original."""
