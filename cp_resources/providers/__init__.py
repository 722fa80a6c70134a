"""Model providers: one module a wire format, and what they share.

`wire` is the protocol every client follows, `transport` how HTTP is spoken and its limits, `endpoint` where
a provider is reached and with which key. What an answer means is decided in `cp_core.execution`.
"""
