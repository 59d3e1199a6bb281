"""Brings published data sets into the form that their registered names read; `datasets/prepare_*.py` call it."""
