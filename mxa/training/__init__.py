"""Training a model, resumable at any step."""
