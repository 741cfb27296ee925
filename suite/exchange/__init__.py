"""Trained models as folders of files that others read, and models of others as runs of a store."""
