"""What a trained model does, as numbers and pictures."""
