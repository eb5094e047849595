"""Record: the folders under TUNESMITH_HOME; files, events and metrics, atomic and durable."""
