"""Importers, one module a family of networks: the names of its files as tables."""
