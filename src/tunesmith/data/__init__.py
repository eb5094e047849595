"""Materials: example types, readers, recognition of formats, writers."""
