"""The processes of `benchmarks.drain`: the platform's run, and the bare loop it is compared with."""
