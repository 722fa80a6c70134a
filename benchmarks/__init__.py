"""One file a claim. `python -m benchmarks.NAME` measures it and prints one JSON object a line."""
