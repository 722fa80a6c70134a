"""The task: its words, its states and the moves between them."""
