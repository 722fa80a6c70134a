"""Group `learning`: what outcomes teach, and how it reaches production; a module an asset, its checks beside it."""
