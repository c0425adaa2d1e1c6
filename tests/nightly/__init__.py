"""What hurts: kills, spoilt files, full disks, two at once, much at once.

`python -m tests.nightly` runs it. A small share of each runs in pytest (test_nightly.py).
"""
