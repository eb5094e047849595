"""Engine: parts of a decoder layer computed in fewer passes over memory; each equals what it replaces."""
