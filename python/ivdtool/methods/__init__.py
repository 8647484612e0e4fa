"""Ways to find and name discs: the papers' networks and what they are compared with."""
