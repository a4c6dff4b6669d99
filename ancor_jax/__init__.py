"""ANCOR in JAX: learn from coarse labels, tell fine classes apart from a few examples.

Nothing is imported here: `ancor_jax.losses` and its neighbours stay importable with jax alone.
"""
