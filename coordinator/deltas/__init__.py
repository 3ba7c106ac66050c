"""Patches between signed bundles, made when the first device asks."""
