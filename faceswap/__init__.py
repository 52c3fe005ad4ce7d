"""Face swapping: one photo of a person onto another person in a photo or a video."""
