"""Quota: accounts, their windows and their states. The ledger itself is in `cp_resources.ledger`."""
