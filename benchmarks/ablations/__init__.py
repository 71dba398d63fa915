"""What each part of HGRN is worth: variants without it, trained on the same data."""
