"""Engine: graders: one answer in, one score out."""
