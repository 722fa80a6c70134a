"""The outside world: PostgreSQL, model providers, configuration files, the clock.

Plain classes that run without Dagster; `cp_resources.configurable` holds the thin Dagster resource beside each.
"""
