"""Configs, the reproduction, its claims and figures."""
