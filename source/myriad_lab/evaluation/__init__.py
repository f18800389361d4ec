"""Evaluation of recorded data: metrics, diversity, plots, reports and studies."""
