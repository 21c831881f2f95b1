"""Joints: what users do with a model, held to what it gives without the hook.

They are users of torch and of transformers. A joint is one way of using a module; a subject is one
module or model with Mamba layers. Each row, a joint with a subject, runs in a process with the hook
and in one without it, and is judged by what came of both.
"""
