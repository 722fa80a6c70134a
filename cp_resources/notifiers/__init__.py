"""Notifiers: how a notice leaves the house, one sink a module.

`message` is the protocol that every sink follows, `chosen` opens the one that the policy names. Which notices
are sent, and what becomes of them, is decided in `cp_resources.outbox`.
"""
