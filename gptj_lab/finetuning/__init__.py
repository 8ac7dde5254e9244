"""Training a model on text."""
