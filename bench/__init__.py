"""Measurements: each script runs alone, prints medians and ratios, and says what it ran against."""
