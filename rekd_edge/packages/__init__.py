"""Compiled packages of a fused model: AOTInductor's, on a CPU or a GPU, and torch-tensorrt's.

    fused model --torch.export--> program --compiled here--> package + side-car, in the user's cache

A package is machine code. It is made on the machine that runs it, kept in the cache of the user who
made it, and never in a bundle or a run, nor loaded from one (docs/adr/0028-packages.md). Importing
this package imports neither torch nor a compiler.
"""
