"""Training: from labelled data sets to a model file."""
