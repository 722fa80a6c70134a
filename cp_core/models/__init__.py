"""The registry: which models there are, what they cost, and what pays for them."""
