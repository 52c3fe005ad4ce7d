"""Benchmarks anyone can repeat: they make their own pictures, and say what machine this was.

Only ratios within one run mean much on a shared machine: what is compared takes turns.
"""
