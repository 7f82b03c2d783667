"""Positions of longer texts: tables (`tables`), rotary (`rope`) and relative ones (`relative`), and trained
distances."""
