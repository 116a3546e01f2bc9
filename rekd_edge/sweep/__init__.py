"""Sweeps over recipe keys: which student is the most accurate at which latency and rationale size.

space.py   what is tried, from the words of `--grid` and `--search`
plan.py    a recipe, a space and how it is searched; every point checked before anything trains
study.py   the trials in Optuna's storage, shared by processes: each point is worked on by one
trial.py   one point: train, export, check, count operations
timing.py  the plain classifiers, and the latency of all files in one run
report.py  sweep.json, sweep.md and the front; figure.py draws it
run.py     all of it, in one process or several
"""
