"""What a trained network is worth: features, few-shot episodes, probes, results."""
