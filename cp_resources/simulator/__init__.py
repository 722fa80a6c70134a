"""Simulated model providers on loopback: real wire formats, and a hidden truth behind the answers.

Nothing in here is imported by the platform itself, which talks to the simulator over HTTP like to any
provider. `truth` says how well a model does a task and what that costs, `weather` which calls fail, the two
wire modules speak the providers' formats, `app` puts a request through all of them and `server` runs the
processes.
"""
