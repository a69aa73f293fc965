"""Faces in images of heads: an average head is laid over the patient's, and what is face by it is painted over."""
