"""Benchmarks and helpers for developers; the library never imports them."""
