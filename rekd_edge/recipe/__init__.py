"""Recipes: what is trained, as reviewable data. Imports neither torch nor transformers."""

from __future__ import annotations

from rekd_edge.recipe.document import Place, Problem
from rekd_edge.recipe.dump import dump_recipe
from rekd_edge.recipe.json_schema import recipe_json_schema
from rekd_edge.recipe.load import InvalidRecipeError, find_recipe, load_recipe, shipped_recipes
from rekd_edge.recipe.schema import Recipe

__all__ = [
    "InvalidRecipeError",
    "Place",
    "Problem",
    "Recipe",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "recipe_json_schema",
    "shipped_recipes",
]
