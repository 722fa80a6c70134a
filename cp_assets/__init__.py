"""The asset graph and its asset checks, a module a group.

An asset body reads, calls the core or a resource, writes, and returns MaterializeResult with metadata. A
check is a search for what must not be. No rule of the business lives here.

Dagster compares the annotation of a decorated function's `context` as it stands, so the modules that decorate
functions do without `from __future__ import annotations`.
"""
