"""Recipes: what is trained, as reviewable data. Imports neither torch nor transformers."""
