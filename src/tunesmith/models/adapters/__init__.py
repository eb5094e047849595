"""Materials: what is trained on a base, how it is kept on disk, how it is folded into the weights."""
