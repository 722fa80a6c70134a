"""What `benchmarks.learning` measures: a module a claim, each with a `measure()` that reports."""
