"""What people and CI measure: the haystack, and how fast the machinery is."""
