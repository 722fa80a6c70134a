"""What `benchmarks.queue` measures: a module a case, each with `prepare` and `drain`.

`prepare(url, tasks)` lays the tasks into an empty database. `drain(url, worker, start)` connects, waits at the barrier
`start`, takes and completes batches until no task is left, and returns how many it did and when the last was done, in
seconds since the epoch.
"""
