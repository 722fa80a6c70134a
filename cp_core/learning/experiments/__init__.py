"""Experiments: what is compared, who gets what, and what may be concluded at any time."""
