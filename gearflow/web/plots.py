"""Plots as SVG, drawn by the server."""
