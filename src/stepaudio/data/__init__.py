"""Speech to learn from: manifests, text to speak, synthesis by teachers, augmentation."""
