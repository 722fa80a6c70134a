"""What outcomes teach: the performance of models, and later everything that is calibrated from it."""
