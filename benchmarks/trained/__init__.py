"""The classifiers whose accuracies docs/reproduction.md publishes, and peers beside them."""
