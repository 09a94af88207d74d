"""Scores of models on images, their calibration and the report."""
