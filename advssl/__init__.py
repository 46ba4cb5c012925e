"""Bolt adversarial robustness onto the self-supervised training loop you already have."""
