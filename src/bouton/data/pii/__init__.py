"""Named entities that identify a person: texts with labelled spans, made or read, and the labels of their tokens."""
