"""Data of Long Range Arena: a stand-in for its texts, and a check of our Pathfinder images."""
