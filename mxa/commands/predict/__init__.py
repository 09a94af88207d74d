"""Predicts images: to the terminal, to a table, on a cluster, and as DICOM objects."""
