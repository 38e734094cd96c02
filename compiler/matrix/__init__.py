"""``qcompile.toml``: many builds from one file. ``read.py`` begins; only ``worker.py`` imports PyTorch.

qcompile.toml ──read──▶ Project ──cells──▶ Cell, Cell, ... ──state──▶ what to build ──run──▶ a process each
"""
