"""Doing the work: what a model is asked, how its answer is judged and priced, and what a failure leads to.

The attempt itself (HTTP, leases, rows) lives in `cp_resources`; here are only the rules it follows.
"""
