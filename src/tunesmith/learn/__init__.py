"""Engine: the numerical core of training: token trees, attention over them, losses, optimisers."""
