"""Evaluation of a trained network: features, few-shot episodes, probes, results."""
