"""Joints: what a user of torch and transformers does with a model, with the hook and without it.

A joint is one way of using a module; a subject is one module or model with Mamba layers. Each row,
a joint with a subject, runs in a process with the hook and in one without it, and is judged by
what came of both.
"""
