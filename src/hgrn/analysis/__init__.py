"""Show what a trained model does, as numbers and pictures."""
