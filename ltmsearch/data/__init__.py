"""Image data sets: folders, timm data sets, and the built-in digits."""
