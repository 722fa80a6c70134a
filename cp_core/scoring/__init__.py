"""Value score and token estimate of tasks: how much a task is worth, and how many tokens it will likely take.

Each rule has a module, its numbers and words come from `config/scoring.yaml` (`ScoringConfig`), and
`cp_core.scoring.score` joins the rules over a DataFrame. What a rule decides is kept beside the score.
"""
