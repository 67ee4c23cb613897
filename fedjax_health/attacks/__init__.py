"""Attacks on data and on updates."""
