"""Shortcuts around layers."""
