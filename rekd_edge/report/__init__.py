"""A page for people: where a model comes from, how often it is right, and what it looked at.

:mod:`~rekd_edge.report.content` is what a page says, :mod:`~rekd_edge.report.page` makes one
self-contained HTML file of it. Nothing here opens a run or a bundle.
"""
