"""What the papers' methods share: data, augmentation, the training loop."""
