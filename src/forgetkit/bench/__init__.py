"""Benchmarks in which the truth is known: a model that was really trained without the target stands beside."""
