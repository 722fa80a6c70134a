"""Which model does which task, and what pays for it.

A strategy takes scored tasks, the registry, the accounts and the policy, and returns one `Decision` a task.
`options` lists what a task may be given, `eligibility` says what is ruled out and why, `capacity` keeps the
running balances, `batch` puts them together, `tiered` is the written policy, `explain` says why a decision is
what it is. Nothing here reserves or stores anything.
"""
