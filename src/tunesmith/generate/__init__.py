"""Engine: decoding and scoring with loaded models."""
