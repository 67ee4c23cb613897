"""Loaders: files with column roles become datasets."""
