"""Seconds and memory beside what people use today: python -m tests.benchmarks."""
