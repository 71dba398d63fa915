"""Associative recall: which token mixers can look up what they have read."""
