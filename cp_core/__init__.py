"""What is decided: plain Python on values, arrays and DataFrames.

Nothing here imports Dagster, SQL, HTTP, files, the environment or a clock: the time and the random seed are
arguments. A folder is a word of the business, and each rule has one home.
"""
