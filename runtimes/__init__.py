"""Adapters that run a bundle's networks: one small module per runtime, nothing about PS3 inside."""
