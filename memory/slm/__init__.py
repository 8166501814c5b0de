"""A small model on this machine: which ones we know, where their weights lie, what runs them.

Nothing here imports an engine (torch, transformers, xllamacpp) but the modules that run as processes of their own.
"""
